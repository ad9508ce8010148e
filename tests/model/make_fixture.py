"""Writes tests/model/fixtures/qwen2: a tiny random Qwen2, with logits and greedy tokens of transformers.

It needs torch; the tests that read the fixture do not. Run: python tests/model/make_fixture.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

FOLDER = Path(__file__).parent / "fixtures" / "qwen2"
PROMPTS = [[3, 17, 42, 8, 60, 5, 29], [51, 2, 9]]  # of different lengths, so that decoding is tested on both


def random_model() -> Qwen2ForCausalLM:
    """A model with random weights, biases and norms, large enough that attention and logits are far from uniform."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=64,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            rope_theta=1e6,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


def main() -> None:
    """Writes the weights, and each prompt's logits and 64 greedy tokens."""
    model = random_model()
    model.save_pretrained(FOLDER)
    arrays = {}
    settings = GenerationConfig(do_sample=False, max_new_tokens=64, eos_token_id=None, pad_token_id=0)
    for i, prompt in enumerate(PROMPTS):
        tokens = torch.tensor([prompt])
        with torch.no_grad():
            arrays[f"logits_{i}"] = model(tokens).logits[0].numpy()
            greedy = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=settings)
        arrays[f"prompt_{i}"] = np.array(prompt, np.int32)
        arrays[f"greedy_{i}"] = greedy[0, len(prompt) :].numpy().astype(np.int32)
    np.savez_compressed(FOLDER / "expected.npz", **arrays)


if __name__ == "__main__":
    main()
