"""A tokenizer of whole words, with Qwen2.5's special tokens and its own ChatML template.

The base vocabulary is the 256 bytes. A known piece (a name with the space before it, a quoted value, a word, a tag of
the answer format) is an *added* token, and the longest one that matches wins; all other text becomes bytes. They are
added tokens and not merges because transformers rebuilds the splitting rules of every tokenizer in a Qwen2 model's
folder but keeps the added tokens, so an exported model reads text as it did in training.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END, PAD = "<|im_end|>", "<|endoftext|>"

_SPECIAL_NAMES = """endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start
    quad_end vision_start vision_end vision_pad image_pad video_pad"""
SPECIAL = tuple(f"<|{name}|>" for name in _SPECIAL_NAMES.split())
_CODE_NAMES = "fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep"
ADDED = ("<tool_call>", "</tool_call>", *(f"<|{name}|>" for name in _CODE_NAMES.split()))

TAGS = (  # of the answer format and of ChatML
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
PHRASES = (  # groups of words that SQL always writes together
    " GROUP BY",
    " ORDER BY",
    " PARTITION BY",
    " count( * )",
    " count( DISTINCT",
    " count(",
    " max(",
    " min(",
    " avg(",
    " sum(",
    " rank( ) OVER (",
    " ( SELECT",
    "SELECT DISTINCT",
)
PIECES = re.compile(
    "|".join(re.escape(text) for text in (*TAGS, *PHRASES))
    + r"| ?'[A-Za-z]+'| ?[A-Za-z]+| ?[0-9]| [<>]=?| ?[^\sA-Za-z0-9]"
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def train(texts: Iterable[str], names: Sequence[str], folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json of a tokenizer that has every piece of `texts` and every name."""
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
    """The pieces longer than a byte that become tokens, each once: fixed ones first, then by frequency."""
    digits = [f" {digit}" for digit in range(10)]
    counts = collections.Counter(piece for text in texts for piece in PIECES.findall(text))
    frequent = sorted(counts, key=lambda piece: (-counts[piece], piece))
    pieces = dict.fromkeys((*TAGS, *PHRASES, *digits, *(f" {name}" for name in names), *frequent))
    return [piece for piece in pieces if len(piece.encode()) > 1]


def _tokenizer(pieces: Sequence[str]) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in (*ADDED, *pieces)])
    return tokenizer
