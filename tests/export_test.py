from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqlr1_jax import config, export
from testing import tiny_models


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"error: {tmp_path} holds no run"):
        export.main([f"--checkpoint={tmp_path}", f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--step=newest", "it takes last, best"),
        ("--dtype=int8", "export.dtype"),
        ("--form=adapter", "without model.lora.rank there is none"),
    ],
)
def test_a_setting_that_cannot_work_is_named(tmp_path: Path, flag: str, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config.as_dict(config.Config())))
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        export.main([f"--checkpoint={tmp_path}", f"--output={tmp_path / 'out'}", flag])
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A run's folder with two checkpoints of random weights: step 2, the better one, and step 5."""
    from sqlr1_jax.model import huggingface
    from sqlr1_jax.train.context import create_context

    workdir, start = (tmp_path_factory.mktemp("runs") / name for name in ("first", "start"))
    tiny_tokenizer.save_pretrained(start)
    model = dataclasses.replace(tiny_models.MODEL, vocab_size=len(tiny_tokenizer) + 3, num_tokens=len(tiny_tokenizer))
    huggingface.save_model(start, tiny_models.random_params(model), model, start)
    grpo = config.GrpoConfig(sampling=config.SamplingConfig(max_tokens=8))
    cfg = dataclasses.replace(config.Config(), model=config.ModelConfig(path=str(start)), grpo=grpo)
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(config.as_dict(cfg)))
    context = create_context(cfg, workdir)
    checkpoints = context.checkpoints("grpo")
    for step, score in ((2, 0.9), (5, 0.1)):
        checkpoints.save(step, {"params": _weights(context, step)}, score)
    checkpoints.close()
    return workdir


def _weights(context: Any, step: int) -> Any:
    """The run's first weights with a number added: tells steps apart."""
    import jax

    from sqlr1_jax.train.context import init_params

    return jax.tree.map(lambda leaf: leaf + 0.001 * step, init_params(context))


def _embedding(folder: Path, name: str = "model.safetensors") -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(folder / name)["model.embed_tokens.weight"]


def test_the_default_step_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.ExportConfig().step == config.default().export.step == "last"
    exported: list[config.ExportConfig] = []
    monkeypatch.setattr(export, "export", lambda workdir, output, settings: exported.append(settings))
    export.main(["--checkpoint=run", "--output=out"])
    assert exported == [config.ExportConfig()]


@pytest.mark.parametrize(("flags", "step"), [([], 5), (["--step=last"], 5), (["--step=best"], 2)])
def test_the_last_step_is_exported_to_the_bit_and_the_best_on_request(
    trained: Path, tmp_path: Path, flags: list[str], step: int
) -> None:
    from sqlr1_jax.train.context import create_context

    export.main([f"--checkpoint={trained}", f"--output={tmp_path}", *flags])
    cfg = config.freeze(json.loads((trained / "config.json").read_text()))
    expected = _weights(create_context(cfg, trained), step)
    assert np.array_equal(_embedding(tmp_path), np.asarray(expected["embed"]))
    assert json.loads((tmp_path / "sqlr1.json").read_text())["weights"] == f"grpo, step {step}"


def test_an_export_answers_questions(trained: Path, tmp_path: Path, pets: Path) -> None:
    from sqlr1_jax.ask.asker import Asker

    export.main([f"--checkpoint={trained}", f"--output={tmp_path}"])

    asker = Asker(tmp_path)
    first, again = (asker.sample(pets, "How many dogs are red?") for _ in range(2))
    assert first == again
    assert len(first) == 1


def test_a_step_and_a_dtype_can_be_chosen(trained: Path, tmp_path: Path) -> None:
    export.main([f"--checkpoint={trained}", f"--output={tmp_path}", "--step=5", "--dtype=bfloat16"])
    assert _embedding(tmp_path).dtype == "bfloat16"
    assert json.loads((tmp_path / "sqlr1.json").read_text())["weights"] == "grpo, step 5"
    written = (tmp_path / "model.safetensors").stat().st_mtime_ns
    export.main([f"--checkpoint={trained}", f"--output={tmp_path}", "--step=last", "--dtype=bfloat16"])
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written


def test_the_adapters_alone_can_be_exported(trained: Path, tmp_path: Path) -> None:
    """Of a run with LoRA that has not trained yet: PEFT's files, and not the model's."""
    tree = json.loads((trained / "config.json").read_text())
    tree["model"]["lora"]["rank"] = 2
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(tree))
    export.main([f"--checkpoint={workdir}", f"--output={tmp_path / 'out'}", "--form=adapter"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "sqlr1.json",
    }  # fmt: skip


def test_a_missing_step_is_named_with_the_existing_ones(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no step 3; it has \[2, 5\]"):
        export.main([f"--checkpoint={trained}", f"--output={tmp_path}", "--step=3"])
