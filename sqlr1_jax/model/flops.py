"""Floating-point operations by hand: compilers count a scan's body once and no Pallas kernel at all."""

from __future__ import annotations

import os

import jax

from sqlr1_jax.model.qwen2 import Qwen2Config

# Dense bfloat16 operations a second of one device, by what its kind contains; vendors' figures.
_PEAKS = {
    "v6 lite": 918e12,
    "v6e": 918e12,
    "v5p": 459e12,
    "v5 lite": 197e12,
    "v5e": 197e12,
    "v5": 459e12,
    "v4": 275e12,
    "b200": 2250e12,
    "h200": 989e12,
    "h100": 989e12,
    "a100": 312e12,
}
_CPU_CORE = 95e9  # float32 matrix products, measured on the machine this was written on


def peak_flops(device: jax.Device) -> float:
    """Operations a second that `device` could do at best; 0 where its kind is not known."""
    if device.platform == "cpu":
        return _CPU_CORE * (os.cpu_count() or 1) / jax.local_device_count()
    kind = device.device_kind.lower()
    return next((peak for name, peak in _PEAKS.items() if name in kind), 0.0)


def matmul_params(config: Qwen2Config) -> int:
    """Parameters that every token is multiplied with, the unembedding among them."""
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    layer = config.hidden_size * (heads * config.head_size + 3 * config.ffw_size)
    return config.num_layers * layer + config.vocab_size * config.hidden_size


def forward_flops(config: Qwen2Config, tokens: float, keys: float, logit_tokens: float | None = None) -> float:
    """Of one forward pass over `tokens`, which see `keys` keys in all (summed over the tokens).

    `logit_tokens` of the tokens are asked for the next one, and need logits; None: all.
    """
    attention = 4 * config.num_layers * config.num_heads * config.head_size * keys
    silent = 0 if logit_tokens is None else tokens - logit_tokens
    return 2 * matmul_params(config) * tokens + attention - 2 * config.vocab_size * config.hidden_size * silent


def update_flops(config: Qwen2Config, tokens: float, keys: float, logit_tokens: float | None = None) -> float:
    """Of forward and backward, without what rematerialization does again: the model's, not the machine's."""
    return 3 * forward_flops(config, tokens, keys, logit_tokens)


def row_keys(prefix: float, segments: float, segment: float) -> float:
    """Keys seen in a row of one prefix and its segments, each causal in itself."""
    return prefix * (prefix + 1) / 2 + segments * (segment * prefix + segment * (segment + 1) / 2)
