"""A small tokenizer whose words are whole tokens: byte-level BPE without merges, over pieces of our own.

A known piece (a name with the space before it, a quoted value, a word, a digit, a mark of the answer form) is one
token; an unknown one is its bytes. Qwen2.5's special tokens and a ChatML template are with it, so that everything
that loads a Qwen2.5 tokenizer loads this one.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END, PAD = "<|im_end|>", "<|endoftext|>"

SPECIAL = tuple(
    f"<|{name}|>"
    for name in """endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end
    vision_start vision_end vision_pad image_pad video_pad""".split()
)
ADDED = ("<tool_call>", "</tool_call>") + tuple(
    f"<|{name}|>" for name in "fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep".split()
)

MARKS = (
    "<think>\n",
    "\n</think>\n<answer>\n```sql\n",
    "<answer>\n```sql\n",
    "\n```\n</answer>",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "```sql",
    "```",
    "system\n",
    "user\n",
    "assistant\n",
    "\n-",
)
PIECES = "|".join(MARKS) + r"| ?'[A-Za-z]+'| ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]|\s"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def train(texts: Iterable[str], names: Sequence[str], folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json: every piece that `texts` hold twice, and every name."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _tokenizer(_pieces(texts, names)).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [token for token in SPECIAL if token not in (END, PAD)],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def _pieces(texts: Iterable[str], names: Sequence[str]) -> list[str]:
    """Pieces that become tokens, as byte-level symbols, without repetition and in a fixed order."""
    split = _splitter()
    counts = collections.Counter(piece for text in texts for piece, _ in split.pre_tokenize_str(text))
    frequent = [piece for piece, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])) if count > 1]
    always = [piece for text in (*MARKS, *(f" {name}" for name in names)) for piece, _ in split.pre_tokenize_str(text)]
    digits = [piece for digit in range(10) for piece, _ in split.pre_tokenize_str(f"{digit} {digit}")]
    return list(dict.fromkeys((*digits, *always, *frequent)))


def _splitter():  # type: ignore[no-untyped-def]  # of tokenizers, which is imported late
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    return Sequence([Split(Regex(PIECES), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


def _tokenizer(pieces: Sequence[str]) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    symbols = dict.fromkeys((*sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces))
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = _splitter()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED])
    return tokenizer
