"""What tests share: tiny models, tiny runs, databases, slow reference computations, hostile SQL.

Only tests import it (`pythonpath` in pyproject.toml has their folder); fixtures made of it stand in conftest.py.
"""
