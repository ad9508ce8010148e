"""Questions, databases and gold queries in; prompts, parsed answers and training rows out. Nothing here imports JAX."""
