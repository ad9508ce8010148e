from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqlr1_jax.errors import ConfigError
from sqlr1_jax.model import tokenizer


def copy_tokenizer(source: Path, target: Path, **changes: Any) -> Path:
    """Copies a tokenizer's folder, with changes to its tokenizer_config.json."""
    shutil.copytree(source, target)
    record = json.loads((target / "tokenizer_config.json").read_text()) | changes
    (target / "tokenizer_config.json").write_text(json.dumps(record))
    return target


def test_a_loaded_tokenizer_encodes_and_decodes_like_the_original(tiny_tokenizer: Any) -> None:
    loaded = tokenizer.load(tiny_tokenizer.name_or_path)
    text = "<|im_start|>user\n- dogs: code, naïve 42<|im_end|>\n"
    ids = loaded(text)["input_ids"]
    assert ids == tiny_tokenizer(text)["input_ids"] and loaded.decode(ids) == text


def test_a_tokenizer_without_a_chat_template_is_rejected(tiny_tokenizer: Any, tmp_path: Path) -> None:
    folder = copy_tokenizer(Path(tiny_tokenizer.name_or_path), tmp_path / "bare", chat_template=None)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=r"has no chat template.*Instruct"):
        tokenizer.load(folder)


def test_a_broken_tokenizer_raises_an_error_that_names_its_folder(tiny_tokenizer: Any, tmp_path: Path) -> None:
    folder = copy_tokenizer(Path(tiny_tokenizer.name_or_path), tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=rf"The tokenizer in {folder} cannot be read .* download the model again"):
        tokenizer.load(folder)


def test_a_folder_without_a_tokenizer_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        tokenizer.load(tmp_path)
    assert tokenizer.count_tokens(tmp_path) == 0


def test_stop_ids_are_the_tokenizers_and_those_of_generation_config(tiny_tokenizer: Any, tmp_path: Path) -> None:
    ends = [tiny_tokenizer.convert_tokens_to_ids(text) for text in ("<|im_end|>", "<|endoftext|>")]
    assert tokenizer.stop_ids(tiny_tokenizer) == tuple(sorted(ends))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    assert tokenizer.stop_ids(tiny_tokenizer, tmp_path) == tuple(sorted([*ends, 5, 7]))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 6}')
    assert tokenizer.stop_ids(tiny_tokenizer, tmp_path) == tuple(sorted([*ends, 6]))


def test_answers_end_on_the_tokenizers_end_or_else_on_the_folders_first(tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 5]}')
    assert tokenizer.end_id(tiny_tokenizer, tmp_path) == tiny_tokenizer.eos_token_id
    source = Path(tiny_tokenizer.name_or_path)
    without = tokenizer.load(copy_tokenizer(source, tmp_path / "without", eos_token=None))
    assert without.eos_token_id is None
    assert tokenizer.end_id(without, tmp_path) == 7
    assert tokenizer.end_id(without) == tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("value", ['"<|im_end|>"', "[5, null]", "-1", "2.5", "true", "{}"])
def test_an_end_that_is_no_id_is_refused_with_file_key_and_value(
    tiny_tokenizer: Any, tmp_path: Path, value: str
) -> None:
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {value}}}')
    with pytest.raises(ConfigError, match=r"generation_config\.json: eos_token_id is .*; set it to a token id, a list"):
        tokenizer.stop_ids(tiny_tokenizer, tmp_path)


def test_holes_in_the_vocabulary_are_found(tiny_tokenizer: Any, tmp_path: Path) -> None:
    count = len(tiny_tokenizer)
    assert tokenizer.id_holes(tiny_tokenizer) == (count, ())
    folder = copy_tokenizer(Path(tiny_tokenizer.name_or_path), tmp_path / "hole")
    record = json.loads((folder / "tokenizer.json").read_text())
    record["model"]["vocab"]["<|custom|>"] = count + 7  # an entry of added_tokens would get the next free id
    (folder / "tokenizer.json").write_text(json.dumps(record))
    loaded = tokenizer.load(folder)
    assert len(loaded) == count + 1
    assert loaded.convert_tokens_to_ids("<|custom|>") == count + 7
    size, holes = tokenizer.id_holes(loaded)
    known = {*range(size)}.difference(*(range(*hole) for hole in holes))
    assert size == count + 8 and known == {*loaded.get_vocab().values()}
    assert tokenizer.count_tokens(folder) == count + 8


def test_an_added_token_that_is_loaded_as_another_id_is_said(
    tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokenizers library gives added tokens consecutive ids, whatever the file says."""
    count = len(tiny_tokenizer)
    folder = copy_tokenizer(Path(tiny_tokenizer.name_or_path), tmp_path / "hole")
    tokenizer.load(folder)
    assert caplog.text == ""
    record = json.loads((folder / "tokenizer.json").read_text())
    record["added_tokens"].append(record["added_tokens"][0] | {"id": count + 7, "content": "<|custom|>"})
    (folder / "tokenizer.json").write_text(json.dumps(record))
    loaded = tokenizer.load(folder)
    assert f"<|custom|> has the id {count + 7} in the file and {count} once loaded" in caplog.text
    assert tokenizer.id_holes(loaded) == (count + 1, ())


def test_count_tokens_includes_added_tokens(tiny_tokenizer: Any) -> None:
    assert tokenizer.count_tokens(tiny_tokenizer.name_or_path) == len(tiny_tokenizer)


def test_qwen2_5s_tokenizer_has_its_known_ids(shared_data: Path) -> None:
    folder = shared_data / "qwen2_5_tokenizer"
    loaded = tokenizer.load(folder)
    assert tokenizer.count_tokens(folder) == len(loaded) == 151665
    assert tokenizer.stop_ids(loaded) == (151643, 151645) and tokenizer.pad_id(loaded) == 151643
    assert loaded("SELECT count(*) FROM dogs")["input_ids"] == [4858, 1760, 28671, 4295, 12590]


def test_stop_text_matcher_counts_up_to_the_token_that_completes_a_stop_text(tiny_tokenizer: Any) -> None:
    matcher = tokenizer.stop_text_matcher(tiny_tokenizer, ("</answer>", "FROM"))
    ids = tiny_tokenizer("<answer> SELECT count(*) FROM dogs </answer> more", add_special_tokens=False)["input_ids"]
    count = matcher(np.asarray(ids))
    assert count is not None
    assert "FROM" in tiny_tokenizer.decode(ids[:count]) and "FROM" not in tiny_tokenizer.decode(ids[: count - 1])
    assert matcher(np.asarray(ids[: count - 1])) is None
