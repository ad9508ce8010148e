"""Questions, databases and golds in; prompts, answers and rows out. Nothing here imports JAX."""
