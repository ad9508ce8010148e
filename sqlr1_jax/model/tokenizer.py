"""Tokenizers from Hugging Face folders, checked for what this package needs of them."""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlr1_jax.errors import ConfigError
from sqlr1_jax.io import read_json

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # transformers warns that torch is missing, which is intended

# Files of a tokenizer; an export copies those that exist.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")  # Qwen2.5's ends of a chat message and of a text


def load(folder: str | Path) -> Any:
    """Loads the folder's tokenizer.json as a fast tokenizer of transformers; torch is not needed.

    Raises:
      ConfigError: there is no tokenizer.json, it is broken, or it has no chat template, which all prompts need.
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
            f"The tokenizer in {folder} has no chat template. Use the Instruct variant of the model, or add the "
            'template as "chat_template" in tokenizer_config.json or as the file chat_template.jinja.'
        )
    return tokenizer


def stop_ids(tokenizer: Any, folder: str | Path = "") -> tuple[int, ...]:
    """All token ids that end a completion, sorted.

    They are the tokenizer's end token, Qwen2.5's stop tokens, and the ids in `folder`/generation_config.json.

    Raises:
      ConfigError: there is no such id.
    """
    vocabulary = tokenizer.get_vocab()  # each call builds a dictionary of all tokens
    ids = {tokenizer.eos_token_id} | {vocabulary.get(text) for text in _STOP_TOKENS}
    path = Path(folder) / "generation_config.json"
    if folder and path.is_file():
        listed = read_json(path).get("eos_token_id")
        ids |= set(listed) if isinstance(listed, list) else {listed}
    stops = tuple(sorted(token for token in ids if token is not None))
    if not stops:
        raise ConfigError('The tokenizer names no end token; set "eos_token" in its tokenizer_config.json.')
    return stops


class StopMatcher:
    """Finds where a completion's text ends.

    A call takes token ids and returns the number of tokens up to and including the one with which the text is ended, or
    None if it goes on.
    """

    def __init__(self, tokenizer: Any, is_ended: Callable[[str], bool]):
        """is_ended: whether a text has ended; true for every text that continues one that has."""
        self._tokenizer, self._is_ended = tokenizer, is_ended

    def __call__(self, ids: Any) -> int | None:
        if not self._ended(ids):
            return None
        # The end may lie inside a token, so whole prefixes are decoded and their length is bisected.
        return bisect.bisect_left(range(len(ids) + 1), True, key=lambda count: self._ended(ids[:count]))

    def _ended(self, ids: Any) -> bool:
        return self._is_ended(self._tokenizer.decode(list(map(int, ids)), clean_up_tokenization_spaces=False))


def stop_text_matcher(tokenizer: Any, texts: Sequence[str]) -> StopMatcher:
    """Ends a completion at the first of these texts, which stays in it."""
    return StopMatcher(tokenizer, lambda text: any(stop in text for stop in texts))


def pad_id(tokenizer: Any) -> int:
    """The id that pads rows; lengths say what is padding, so without a pad token id 0 serves."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def count_tokens(folder: str | Path) -> int:
    """The number of ids of the folder's tokenizer, added tokens included; 0 without a tokenizer.json.

    Embeddings usually have more rows than that.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        return 0
    record = read_json(path)
    vocabulary = record["model"]["vocab"]
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return 1 + max([*ids, *(token["id"] for token in record.get("added_tokens", ()))])
