from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlr1_jax.data import answer
from sqlr1_jax.synth import tokenizer, words

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def trained(data_folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(data_folder / "tokenizer")


def _ids(trained: Any, text: str) -> list[int]:
    return trained(text)["input_ids"]


def test_vocabulary_is_small_and_names_are_whole_tokens(trained: Any) -> None:
    assert len(trained) <= 1800
    for name in (*words.names(words.COMMON), *words.names(words.RESERVED)):
        assert len(_ids(trained, f" {name}")) == 1, name
    for value in words.values():
        assert len(_ids(trained, f" '{value}'")) == 1, value


def test_questions_and_answers_are_short(trained: Any, records: dict[str, list[dict[str, Any]]]) -> None:
    for record in records["sft"]:
        assert len(_ids(trained, record["cot"])) <= 60
        assert len(_ids(trained, record["question"])) <= 28
        text = answer.write(record["cot"], record["sql"], "reasoning")
        assert len(_ids(trained, text)) <= len(_ids(trained, record["cot"])) + len(_ids(trained, record["sql"])) + 3


def test_questions_and_answers_fall_back_to_bytes_only_for_punctuation_and_digits(
    trained: Any, records: dict[str, list[dict[str, Any]]]
) -> None:
    known = set("\n,;:.?-0123456789")
    for record in records["newnames"]:
        text = record["question"] + "\n" + answer.write(record["cot"], record["sql"], "reasoning")
        single = {token for token in trained.convert_ids_to_tokens(_ids(trained, text)) if len(token) == 1}
        assert {"\n" if token == "Ċ" else token for token in single} <= known | {"I"}


@given(text=st.text())
@settings(max_examples=200)
def test_decoding_undoes_encoding(trained: Any, text: str) -> None:
    assert trained.decode(_ids(trained, text)) == text


@given(pieces=st.lists(st.sampled_from([*tokenizer.TAGS, *tokenizer.PHRASES, " 'red'", "dogs", " ", "é", "\n", "'"])))
def test_decoding_undoes_encoding_of_tags_in_any_order(trained: Any, pieces: list[str]) -> None:
    assert trained.decode(_ids(trained, "".join(pieces))) == "".join(pieces)


def test_special_tokens_are_those_of_qwen(trained: Any) -> None:
    assert (trained.eos_token, trained.pad_token) == ("<|im_end|>", "<|endoftext|>")
    for token in (*tokenizer.SPECIAL, *tokenizer.ADDED):
        assert len(_ids(trained, token)) == 1


def test_a_qwen2_model_in_the_same_folder_changes_no_token(
    trained: Any, data_folder: Path, tmp_path: Path, records: dict[str, list[dict[str, Any]]]
) -> None:
    """Transformers rebuilds the splitting rules of a tokenizer next to a Qwen2 config, but keeps its added tokens."""
    shutil.copytree(data_folder / "tokenizer", tmp_path / "export")
    (tmp_path / "export" / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    exported.save_pretrained(tmp_path / "again")
    saved_again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    for record in records["newnames"][:50]:
        text = "<|im_start|>user\n" + record["question"] + answer.write(record["cot"], record["sql"], "reasoning")
        assert _ids(exported, text) == _ids(saved_again, text) == _ids(trained, text)
        assert exported.decode(_ids(exported, text)) == text
    assert len(exported) == len(trained)


MESSAGES = [
    {"role": "system", "content": "SQLite"},
    {"role": "user", "content": "- dogs: code, color\nHow many?\n"},
    {"role": "assistant", "content": "<think>\nshow count\n</think>"},
    {"role": "user", "content": "Again."},
]


def test_chat_template_writes_chatml(trained: Any) -> None:
    text = trained.apply_chat_template(MESSAGES[1:2], tokenize=False, add_generation_prompt=True)
    assert text == f"<|im_start|>user\n{MESSAGES[1]['content']}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("generation", [False, True])
def test_chat_template_equals_qwens(trained: Any, shared_data: Path, count: int, generation: bool) -> None:
    qwen = transformers.AutoTokenizer.from_pretrained(shared_data / "qwen2_5_tokenizer")
    theirs, ours = (
        one.apply_chat_template(MESSAGES[:count], tokenize=False, add_generation_prompt=generation)
        for one in (qwen, trained)
    )
    assert ours == theirs


def test_special_tokens_are_those_that_qwen_lists(shared_data: Path) -> None:
    listed = json.loads((shared_data / "qwen2_5_tokenizer" / "tokenizer_config.json").read_text())
    tokens = [(entry["content"], entry["special"]) for entry in listed["added_tokens_decoder"].values()]
    assert tokens == [(token, True) for token in tokenizer.SPECIAL] + [(token, False) for token in tokenizer.ADDED]
