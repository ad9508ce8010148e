"""Floating-point operations of the model, by formula.

XLA's cost analysis counts the body of a scan once and a Pallas kernel not at all, so it cannot be used for this.
"""

from __future__ import annotations

import os

import jax

from sqlr1_jax.model.qwen2 import Qwen2Config

# Dense bfloat16 FLOP/s of one device, from the vendors; a key is a part of the device kind, and the first match counts.
_PEAK_FLOPS = {
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
_CPU_CORE_FLOPS = 95e9  # FLOP/s of one core in float32 matmuls, measured on one machine


def peak_flops(device: jax.Device) -> float:
    """Peak FLOP/s of `device`; 0 for an unknown kind.

    A CPU device counts its share of the machine's cores.
    """
    if device.platform == "cpu":
        return _CPU_CORE_FLOPS * (os.cpu_count() or 1) / jax.local_device_count()
    kind = device.device_kind.lower()
    return next((peak for name, peak in _PEAK_FLOPS.items() if name in kind), 0.0)


def matmul_params(config: Qwen2Config) -> int:
    """The number of parameters that multiply every token: the layers' matrices and the unembedding."""
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    layer = config.hidden_size * (heads * config.head_size + 3 * config.ffw_size)
    return config.num_layers * layer + config.vocab_size * config.hidden_size


def forward_flops(config: Qwen2Config, tokens: float, keys: float, logit_tokens: float | None = None) -> float:
    """FLOP of one forward pass.

    Args:
      config: the model's shape.
      tokens: tokens of the pass.
      keys: keys that the tokens attend to, summed over the tokens.
      logit_tokens: how many of the tokens need logits; None: all.
    """
    # Per key, query head and channel: a multiplication and an addition, in scores and in the weighted sum of values.
    attention = 4 * config.num_layers * config.num_heads * config.head_size * keys
    without_logits = 0 if logit_tokens is None else tokens - logit_tokens
    return 2 * matmul_params(config) * tokens + attention - 2 * config.vocab_size * config.hidden_size * without_logits


def update_flops(config: Qwen2Config, tokens: float, keys: float, logit_tokens: float | None = None) -> float:
    """FLOP of a forward and a backward pass, arguments as in `forward_flops`.

    These are the model's operations: what rematerialization repeats is not counted.
    """
    return update_passes(config) * forward_flops(config, tokens, keys, logit_tokens)


def update_passes(config: Qwen2Config) -> int:
    """How many forward passes' operations an update takes: forward, inputs' gradients and weights' gradients.

    With LoRA the weights are frozen, and the adapters' own products are too small to count.
    """
    return 2 if config.lora_rank else 3


def row_keys(prefix: float, segments: float, segment: float) -> float:
    """Keys attended to in a row of one prefix and `segments` segments, summed over its tokens.

    Args:
      prefix: tokens of the prefix, which is causal.
      segments: number of segments, each of which attends to the prefix and, causally, to itself.
      segment: tokens of each segment.
    """
    return prefix * (prefix + 1) / 2 + segments * (segment * prefix + segment * (segment + 1) / 2)
