"""Text-to-SQL reasoning models in JAX: supervised fine-tuning, GRPO, evaluation and export."""

__version__ = "0.1.0"
