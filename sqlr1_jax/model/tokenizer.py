"""Tokenizers from Hugging Face folders, checked for what this package needs of them."""

from __future__ import annotations

import bisect
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlr1_jax.errors import ConfigError
from sqlr1_jax.io import find_fault, read_json_object

_log = logging.getLogger(__name__)
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
_SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")  # Qwen2.5's ends of a chat message and of a text


def load(folder: str | Path) -> Any:
    """Loads the folder's tokenizer.json as a fast tokenizer of transformers; torch is not needed.

    Raises:
      ConfigError: there is no tokenizer.json, a file is broken, or there is no chat template, which all prompts need.
      JsonError: tokenizer_config.json or another file of settings is not JSON.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(f"{folder} has no tokenizer.json; config.model.path takes a folder with a fast tokenizer.")
    for name in FILES:
        if (folder / name).is_file() and (fault := find_fault(folder / name)):
            raise ConfigError(f"{folder / name} {fault}. Download it again.")
    for name in _SETTINGS_FILES:
        if (folder / name).is_file():
            read_json_object(folder / name)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"The tokenizer in {folder} cannot be read ({type(error).__name__}: {reason}): download the model again."
        ) from error
    if not tokenizer.chat_template:
        raise ConfigError(
            f"The tokenizer in {folder} has no chat template. Use the Instruct variant of the model, or add the "
            'template as "chat_template" in tokenizer_config.json or as the file chat_template.jinja.'
        )
    _warn_of_renumbered_tokens(folder / "tokenizer.json", tokenizer)
    return tokenizer


def _warn_of_renumbered_tokens(path: Path, tokenizer: Any) -> None:
    """Logs the first added token that is not loaded as the id that the file gives it, as happens past a hole."""
    vocabulary = tokenizer.get_vocab()
    for token in read_json_object(path).get("added_tokens") or ():
        if (loaded := vocabulary.get(token["content"])) != token["id"]:
            _log.warning(
                "%s: the added token %s has the id %d in the file and %s once loaded, here as in transformers; if the "
                "model was trained with the former, fill the ids before it with placeholder tokens",
                path, token["content"], token["id"], loaded,
            )  # fmt: skip
            return


def stop_ids(tokenizer: Any, folder: str | Path = "") -> tuple[int, ...]:
    """All token ids that end a completion, sorted.

    They are the tokenizer's end token, Qwen2.5's stop tokens, and the ids in `folder`/generation_config.json.

    Raises:
      ConfigError: there is no such id.
    """
    ids = [tokenizer.eos_token_id, *_listed_ends(folder), *_known_ends(tokenizer)]
    stops = tuple(sorted({token for token in ids if token is not None}))
    if not stops:
        raise ConfigError('The tokenizer names no end token; set "eos_token" in its tokenizer_config.json.')
    return stops


def end_id(tokenizer: Any, folder: str | Path = "") -> int:
    """The token id that ends an answer in training: the first of the tokenizer's, the folder's, and Qwen2.5's ends.

    Raises:
      ConfigError: there is no such id.
    """
    stops = stop_ids(tokenizer, folder)
    ids = (tokenizer.eos_token_id, *_listed_ends(folder), *_known_ends(tokenizer))
    return next((token for token in ids if token is not None), stops[0])


def _known_ends(tokenizer: Any) -> list[int | None]:
    vocabulary = tokenizer.get_vocab()  # each call builds a dictionary of all tokens
    return [vocabulary.get(text) for text in _STOP_TOKENS]


def _listed_ends(folder: str | Path) -> list[int]:
    """The ids in eos_token_id of the folder's generation_config.json, which is one id, a list of them, or null."""
    path = Path(folder) / "generation_config.json"
    if not folder or not path.is_file():
        return []
    listed = read_json_object(path).get("eos_token_id")
    ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise ConfigError(
                f"{path}: eos_token_id is {listed!r}; set it to a token id, a list of token ids, or null."
            )
    return ids


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
    """One more than the largest id of the folder's tokenizer, added tokens included; 0 without a tokenizer.json.

    Embeddings usually have more rows than that.

    Raises:
      ConfigError: tokenizer.json has no vocabulary.
      JsonError: tokenizer.json is broken.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        return 0
    record = read_json_object(path)
    try:
        vocabulary = record["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return 1 + max([*ids, *(token["id"] for token in record.get("added_tokens") or ())])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} has no vocabulary in model.vocab ({error!r}): download it again.") from error


def id_holes(tokenizer: Any) -> tuple[int, tuple[tuple[int, int], ...]]:
    """One more than the tokenizer's largest id, and the ranges [start, end) below it of ids that no token has.

    len(tokenizer) is the number of tokens: with a hole, it is less than the largest id.
    """
    ids = sorted({*tokenizer.get_vocab().values()})
    holes = tuple((low + 1, high) for low, high in zip([-1, *ids], ids, strict=False) if high > low + 1)
    return ids[-1] + 1, holes
