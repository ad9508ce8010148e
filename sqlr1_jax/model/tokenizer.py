"""Tokenizers from Hugging Face folders, with what the stack asks of them checked once."""

from __future__ import annotations

import bisect
import json
import os
from pathlib import Path
from typing import Any

from sqlr1_jax.errors import ConfigError

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns that torch is absent, which is meant

# Files that make up a tokenizer; an export copies those that are there.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_STOPS = ("<|im_end|>", "<|endoftext|>")  # Qwen2.5's ends of a turn and of a text


def load(folder: str | Path) -> Any:
    """The folder's tokenizer.json as a transformers fast tokenizer (no torch needed).

    Raises ConfigError where there is none, or one that is broken or has no chat template, which renders all prompts.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"{folder} has no tokenizer.json; config.model.path takes a folder with a fast tokenizer.")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    except Exception as error:
        raise ConfigError(f"The tokenizer in {folder} cannot be read ({error}): download the model again.") from error
    if not tokenizer.chat_template:
        raise ConfigError(
            f"The tokenizer in {folder} has no chat template. Take the Instruct variant of the model, or put the "
            'template into tokenizer_config.json as "chat_template" or into chat_template.jinja beside it.'
        )
    return tokenizer


def stop_ids(tokenizer: Any, folder: str | Path = "") -> tuple[int, ...]:
    """Every id that ends a completion: the tokenizer's end, Qwen2.5's ends and those of generation_config.json."""
    ids = {tokenizer.eos_token_id} | {tokenizer.get_vocab().get(text) for text in _STOPS}
    path = Path(folder) / "generation_config.json"
    if folder and path.is_file():
        listed = json.loads(path.read_text()).get("eos_token_id")
        ids |= set(listed) if isinstance(listed, list) else {listed}
    stops = tuple(sorted(token for token in ids if token is not None))
    if not stops:
        raise ConfigError('The tokenizer names no end token; set "eos_token" in its tokenizer_config.json.')
    return stops


class StopTextMatcher:
    """Tells how many of a completion's tokens reach the end of the first text that ends it; None: not there yet."""

    def __init__(self, tokenizer: Any, texts: tuple[str, ...]):
        self._tokenizer, self._texts = tokenizer, texts

    def __call__(self, ids: Any) -> int | None:
        if not self._ended(ids):
            return None
        return bisect.bisect_left(range(len(ids) + 1), True, key=lambda count: self._ended(ids[:count]))

    def _ended(self, ids: Any) -> bool:
        text = self._tokenizer.decode(list(map(int, ids)), clean_up_tokenization_spaces=False)
        return any(end in text for end in self._texts)


def pad_id(tokenizer: Any) -> int:
    """The id that fills rows; lengths, not ids, say what is padding, so any id does where none is named."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def count_tokens(folder: str | Path) -> int:
    """Ids that the folder's tokenizer can make, 0 where it has no tokenizer.json; embeddings are padded past them."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        return 0
    record = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = record["model"]["vocab"]
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return 1 + max([*ids, *(token["id"] for token in record.get("added_tokens", ()))])
