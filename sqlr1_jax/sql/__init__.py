"""Runs SQL that a model wrote in a sandbox, compares its results with gold results, votes. Never imports JAX."""
