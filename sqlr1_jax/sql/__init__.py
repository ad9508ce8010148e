"""SQL that a model made up: run in a sandbox, compared with gold, voted on. Never imports JAX."""
