from __future__ import annotations

from pathlib import Path

import pytest

from sqlr1_jax.ask.__main__ import main


def test_broken_weights_are_an_error_of_the_first_question(model: Path, pets: Path, tmp_path: Path) -> None:
    for file in model.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SystemExit, match=r"has no \*\.safetensors file"):
        main([f"--model={tmp_path}", f"--database={pets}", "How many?"])


def test_a_missing_database_is_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*nowhere\.sqlite does not exist"):
        main([f"--model={tmp_path}", f"--database={tmp_path / 'nowhere.sqlite'}", "How many?"])


def test_a_missing_model_is_named(tmp_path: Path, pets: Path) -> None:
    with pytest.raises(SystemExit, match=f"error: {tmp_path} holds no model: no config.json"):
        main([f"--model={tmp_path}", f"--database={pets}", "How many?"])


def test_fewer_than_one_vote_is_refused_before_the_model_is_loaded(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: --votes is 0; it must be at least 1\."):
        main([f"--model={tmp_path}", f"--database={pets}", "--votes=0", "How many dogs?"])
