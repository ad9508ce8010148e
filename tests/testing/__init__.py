"""Helpers that tests share: tiny models, tiny runs, databases, slow reference computations, hostile SQL.

Only tests import this package (`pythonpath` in pyproject.toml has their folder). Fixtures are in conftest.py.
"""
