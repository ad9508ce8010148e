from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import tokenizer


def copied(source: Path, target: Path, **changes: Any) -> Path:
    """A tokenizer's folder with changes to its tokenizer_config.json."""
    shutil.copytree(source, target)
    record = json.loads((target / "tokenizer_config.json").read_text()) | changes
    (target / "tokenizer_config.json").write_text(json.dumps(record))
    return target


def test_load_gives_the_same_ids_as_the_file(tiny_tokenizer: Any) -> None:
    loaded = tokenizer.load(tiny_tokenizer.name_or_path)
    text = "<|im_start|>user\n- dogs: code, naïve 42<|im_end|>\n"
    ids = loaded(text)["input_ids"]
    assert ids == tiny_tokenizer(text)["input_ids"] and loaded.decode(ids) == text


def test_a_tokenizer_without_a_chat_template_is_refused(tiny_tokenizer: Any, tmp_path: Path) -> None:
    folder = copied(Path(tiny_tokenizer.name_or_path), tmp_path / "bare", chat_template=None)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=r"has no chat template.*Instruct"):
        tokenizer.load(folder)


def test_a_broken_tokenizer_is_named(tiny_tokenizer: Any, tmp_path: Path) -> None:
    folder = copied(Path(tiny_tokenizer.name_or_path), tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=rf"The tokenizer in {folder} cannot be read .* download the model again"):
        tokenizer.load(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        tokenizer.load(tmp_path)
    assert tokenizer.count_tokens(tmp_path) == 0


def test_stop_ids_are_all_ends_named_by_tokenizer_and_generation_config(tiny_tokenizer: Any, tmp_path: Path) -> None:
    ends = [tiny_tokenizer.convert_tokens_to_ids(text) for text in ("<|im_end|>", "<|endoftext|>")]
    assert tokenizer.stop_ids(tiny_tokenizer) == tuple(sorted(ends))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    assert tokenizer.stop_ids(tiny_tokenizer, tmp_path) == tuple(sorted([*ends, 5, 7]))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 6}')
    assert tokenizer.stop_ids(tiny_tokenizer, tmp_path) == tuple(sorted([*ends, 6]))


def test_count_tokens_includes_added_tokens(tiny_tokenizer: Any) -> None:
    assert tokenizer.count_tokens(tiny_tokenizer.name_or_path) == len(tiny_tokenizer)


def test_qwens_tokenizer_is_read(shared_data: Path) -> None:
    folder = shared_data / "qwen2_5_tokenizer"
    loaded = tokenizer.load(folder)
    assert tokenizer.count_tokens(folder) == len(loaded) == 151665
    assert tokenizer.stop_ids(loaded) == (151643, 151645) and tokenizer.pad_id(loaded) == 151643
    assert loaded("SELECT count(*) FROM dogs")["input_ids"] == [4858, 1760, 28671, 4295, 12590]


def test_ends_counts_tokens_up_to_the_first_ending_text(tiny_tokenizer: Any) -> None:
    words = tiny_tokenizer
    ends = tokenizer.StopTextMatcher(words, ("</answer>", "FROM"))
    ids = words("<answer> SELECT count(*) FROM dogs </answer> more", add_special_tokens=False)["input_ids"]
    count = ends(np.asarray(ids))
    assert count is not None
    assert "FROM" in words.decode(ids[:count]) and "FROM" not in words.decode(ids[: count - 1])
    assert ends(np.asarray(ids[: count - 1])) is None
