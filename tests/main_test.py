from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from absl import flags

from sqlr1_jax import config, main, run_lock
from sqlr1_jax.train import metrics
from testing import tiny_runs

NUMBERS = [
    *(f"reward/{name}" for name in ("mean", "std", "format", "execution", "result", "length")),
    *(f"groups/{name}" for name in ("mixed", "all_right", "all_wrong", "rounds", "sampled", "trained")),
    *(f"completion/{name}" for name in ("mean_tokens", "max_tokens", "truncated")),
    *("kl", "entropy", "clip_fraction", "ratio/mean", "ratio/max", "logprob_mismatch", "clamped_fraction"),
    *("grad_norm", "lr", "loss"),
    *(f"time/{name}" for name in ("rollout", "reward_wait", "execute", "pack", "update", "step")),
    *("tokens_per_second", "tokens_per_second_per_chip"),
    *(f"sql/{name}" for name in ("p50_ms", "p99_ms", "timeouts", "wall_kills", "cache_hits")),
]
VOLATILE = ("time/", "tokens_per_second", "sql/p50_ms", "sql/p99_ms", "sql/cache_hits", "mfu")


def _lines(workdir: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl promises to repeat."""
    lines = metrics.read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(VOLATILE)} for line in lines]


def _files(workdir: Path, *patterns: str) -> dict[str, bytes]:
    found = [path for pattern in patterns for path in sorted(workdir.glob(pattern))]
    assert found
    return {str(path.relative_to(workdir)): path.read_bytes() for path in found}


def _ends_alike(run: Path, finished: Path) -> None:
    """Parameters (as exported, float32), metrics, rollouts and evaluations, to the bit."""
    kept = "export/*.safetensors", "rollouts/*.jsonl", "evaluation/*/*.json*"
    assert _files(run, *kept) == _files(finished, *kept)
    for line, other in zip(_lines(run), _lines(finished), strict=True):
        assert {item for item in line.items() if item not in other.items()} == set(), line["step"]
        assert line.keys() == other.keys()


def test_a_run_leaves_all_its_files(finished: Path) -> None:
    there = {path.name for path in finished.iterdir()}
    assert there >= {
        "config.json", "data", "metrics.jsonl", "tensorboard", "checkpoints", "rollouts", "evaluation", "report.html",
        "export", "summary.json", "log.txt",
    }  # fmt: skip
    assert [(line["stage"], line["step"]) for line in _lines(finished)] == [
        *(("sft", step) for step in range(1, 5)),
        *(("grpo", step) for step in range(1, 5)),
    ]
    assert sorted(path.name for path in (finished / "checkpoints" / "sft").iterdir()) == ["0", "2", "4"]
    assert {path.name for path in (finished / "evaluation").iterdir()} == {"sft", "final"}
    assert not list(finished.rglob("*.part"))


def test_the_summary_has_all_its_fields(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for name in ("sft", "final"):
        for split, count in (("heldout", 6), ("newnames", 4)):
            assert set(summary[name][split]) == {"ex_greedy", "ex_vote2", "pass2", "well_formed", "n"}
            assert summary[name][split]["n"] == count
    assert set(summary["seconds"]) == {"data", "sft", "grpo", "evaluate", "export", "total"}
    assert len(summary["interval"]) == 2
    assert {name: summary[name] for name in summary["final"]["heldout"]} == summary["final"]["heldout"]


def test_every_step_has_all_metrics(finished: Path) -> None:
    lines = [line for line in metrics.read_metrics(finished / "metrics.jsonl") if line["stage"] == "grpo"]
    for line in lines:
        assert [name for name in NUMBERS if name not in line] == []
        assert line["logprob_mismatch"] <= 1.005
        assert line["sql/wall_kills"] == 0
        assert sum(value for name, value in line.items() if name.startswith("outcome/")) == pytest.approx(1)
        assert line["grad_norm"] > 0
    assert [line["step"] for line in lines if "evaluate/ex" in line] == [2, 4]


def _killed_and_resumed(home: Path, workdir: Path, stage: str, step: int, moment: str, **changed: Any) -> None:
    arguments = tiny_runs.command_line(home, workdir, **changed)
    killed = tiny_runs.run_python(
        home, ["-m", "testing.killed_runs", stage, str(step), moment, *arguments], check=False
    )
    assert killed.returncode == -9, killed.stderr[-2000:]
    tiny_runs.run_python(home, ["-m", "sqlr1_jax.main", *arguments])


def test_a_run_killed_in_a_grpo_step_resumes_bit_for_bit(home: Path, finished: Path, tmp_path: Path) -> None:
    """From where the cold start ended: SIGKILL in step 3, whose rollouts are on disk and whose weights are not."""
    workdir = tmp_path / "run"
    left_out = "checkpoints/grpo", "evaluation/final", "export", "rollouts", "report.html", "summary.json"
    shutil.copytree(finished, workdir)
    for name in left_out:
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    lines = [line for line in metrics.read_metrics(finished / "metrics.jsonl") if line["stage"] == "sft"]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _killed_and_resumed(home, workdir, "grpo", 3, "stepped")
    _ends_alike(workdir, finished)


@pytest.mark.nightly
@pytest.mark.parametrize("moment", ["stepped", "saving", "writing", "saved"])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_run_killed_anywhere_resumes_bit_for_bit(
    home: Path, finished: Path, tmp_path: Path, stage: str, step: int, moment: str
) -> None:
    if moment != "stepped" and step % 2:
        pytest.skip("no checkpoint at this step")
    workdir = tiny_runs.folder_with_data(home, tmp_path / "run")
    _killed_and_resumed(home, workdir, stage, step, moment)
    _ends_alike(workdir, finished)


# Random weights answer nothing right, so every range of difficulty keeps all questions or none, no group is mixed, and
# every step samples all rounds. tests/rl/grpo_test.py resumes steps of other numbers of rounds, whose groups train.
REFILLED = {
    "grpo__refill": 2,
    "grpo__advantage__keep": "mixed",
    "grpo__difficulty__samples": 2,
    "grpo__difficulty__min_right": 0,
    "grpo__difficulty__max_right": 2,
    "evaluate__max_concurrent_prompts": 1,
}


@pytest.fixture(scope="module")
def refilled(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with these settings; tests only read it."""
    workdir = tiny_runs.folder_with_data(home, tmp_path_factory.mktemp("runs") / "refilled")
    tiny_runs.run_python(home, ["-m", "sqlr1_jax.main", *tiny_runs.command_line(home, workdir, **REFILLED)])
    return workdir


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("stage", "step", "moment"),
    [
        *(("difficulty", chunk, "saved") for chunk in range(3)),
        *(("grpo", step, "stepped") for step in range(1, 5)),
        ("grpo", 2, "saving"),
        ("grpo", 2, "saved"),
    ],
)
def test_a_refilled_run_killed_anywhere_resumes_bit_for_bit(
    home: Path, refilled: Path, tmp_path: Path, stage: str, step: int, moment: str
) -> None:
    workdir = tiny_runs.folder_with_data(home, tmp_path / "run")
    _killed_and_resumed(home, workdir, stage, step, moment, **REFILLED)
    _ends_alike(workdir, refilled)
    assert _files(workdir, "difficulty*") == _files(refilled, "difficulty*")
    steps = [line for line in _lines(workdir) if line["stage"] == "grpo"]
    assert [(line["groups/rounds"], line["groups/sampled"], line["groups/trained"]) for line in steps] == [
        (3, 6, 0)
    ] * 4


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_run_with_lora_killed_in_a_step_resumes_bit_for_bit(home: Path, tmp_path: Path) -> None:
    changed = {
        "model.lora.rank": 2,
        "sft.optimizer.frozen": "()",
        "export.form": "adapter",
        "stages": "('sft','grpo','evaluate','export')",
    }
    whole, resumed = (tiny_runs.folder_with_data(home, tmp_path / name) for name in ("whole", "resumed"))
    tiny_runs.run_python(home, ["-m", "sqlr1_jax.main", *tiny_runs.command_line(home, whole, **changed)])
    _killed_and_resumed(home, resumed, "grpo", 3, "stepped", **changed)
    _ends_alike(resumed, whole)
    assert {path.name for path in (whole / "export").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "sqlr1.json",
    }


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_the_smoke_config_runs_to_the_end(home: Path, tmp_path: Path) -> None:
    command = ["-m", "sqlr1_jax.main", "--config=configs/grpo.py:smoke", f"--workdir={tmp_path / 'run'}"]
    tiny_runs.run_python(home, command)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["n"] == 32
    assert (tmp_path / "run" / "export" / "model.safetensors").exists()


# Errors before a device is used: main runs in this process.


RunMain = Callable[..., str]


@pytest.fixture
def error(monkeypatch: pytest.MonkeyPatch) -> RunMain:
    """A function that runs main with the given flags, which must fail, and returns its error message."""
    monkeypatch.chdir(tiny_runs.REPOSITORY)

    def run_main(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["main", *arguments])  # ml_collections looks for overrides there
        flags.FLAGS.unparse_flags()
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)  # an override defines a flag, once
        with pytest.raises(SystemExit) as end:
            main.absl_main(main.parse(["main", *arguments]))
        message = str(end.value)
        assert message.startswith("error: ")
        assert "\n" not in message, "the message has more than one line"
        return message

    return run_main


SMOKE = "--config=configs/grpo.py:smoke"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.grpo.stpes=3", "config.grpo.stpes does not exist. Did you mean config.grpo.steps?"),
        ("--config.gpro.steps=3", "config.gpro does not exist. Did you mean config.grpo?"),
        ("--config.grpo.steps.n=3", "config.grpo.steps is a single setting"),
        ("--config.grpo.steps=three", "--config.grpo.steps=three: invalid literal"),
        ("--config.model.size=70b", "Did you mean '7b'?"),
        ("--confg.grpo.steps=3", "Unknown command line flag 'confg.grpo.steps'"),
        ("--config.stages=('data','gpro')", "Did you mean 'grpo'?"),
    ],
)
def test_a_typo_gets_a_suggestion(tmp_path: Path, error: RunMain, flag: str, message: str) -> None:
    assert message in error(SMOKE, f"--workdir={tmp_path / 'run'}", flag)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("configs/grpo.py:70b", "there is no size '70b'; the sizes are smoke, laptop"),
        ("configs/gpro.py", "No such file"),
    ],
)
def test_an_unknown_config_file_is_an_error_that_names_it(
    tmp_path: Path, error: RunMain, file: str, message: str
) -> None:
    assert message in error(f"--config={file}", f"--workdir={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("old", "new"), [("cold_start.steps", "sft"), ("rollout.chunk", "rollout.decode_steps_per_sync")]
)
def test_an_old_name_in_a_config_file_is_an_error_with_the_new_one(
    tmp_path: Path, error: RunMain, old: str, new: str
) -> None:
    file = tmp_path / "old.py"
    lines = [
        "from sqlr1_jax.config import default",
        "def get_config():",
        " c = default()",
        f" c.{old} = 5",
        " return c",
    ]
    file.write_text("\n".join(lines))
    assert f"has a new name: set config.{new}." in error(f"--config={file}", f"--workdir={tmp_path / 'run'}")


def _own_data(error: RunMain, tmp_path: Path, home: Path, text: str, *more: str) -> str:
    """The error message for a JSONL file with this text as SFT data."""
    (tmp_path / "own.jsonl").write_text(text)
    return error(
        SMOKE, f"--workdir={tmp_path / 'run'}", f"--config.model.path={home / 'model'}",
        "--config.stages=('sft',)", f"--config.data.sft=jsonl:{tmp_path / 'own.jsonl'}", *more,
    )  # fmt: skip


def test_a_missing_database_is_a_one_line_error(home: Path, tmp_path: Path, error: RunMain) -> None:
    record = json.dumps({"db_id": "nowhere", "question": "How many?", "sql": "SELECT 1"})
    message = _own_data(error, tmp_path, home, record + "\n", f"--config.data.databases={tmp_path}")
    for part in ("own.jsonl", "record 0", "database", "--config.data.databases="):
        assert part in message


def test_malformed_records_are_a_one_line_error(home: Path, tmp_path: Path, error: RunMain) -> None:
    message = _own_data(error, tmp_path, home, '{"db_id": "pets"}\n{"question": "What?"}\n')
    for part in ("own.jsonl", "none of its 2 records can be used", "no question", "first in record 0"):
        assert part in message


def test_a_source_without_reasoning_names_the_direct_form(
    home: Path, tmp_path: Path, pets: Path, error: RunMain
) -> None:
    record = json.dumps({"db_id": "pets", "question": "How many?", "sql": "SELECT 1"})
    message = _own_data(error, tmp_path, home, record + "\n", f"--config.data.databases={pets.parents[1]}")
    assert "No record of" in message and "own.jsonl has reasoning" in message
    assert "--config.data.form=direct" in message


def test_a_tokenizer_without_a_chat_template_is_a_one_line_error(home: Path, tmp_path: Path, error: RunMain) -> None:
    model = shutil.copytree(home / "model", tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    arguments = [SMOKE, f"--workdir={tmp_path / 'run'}", f"--config.model.path={model}", "--config.stages=('grpo',)"]
    message = error(*arguments)
    assert str(model) in message
    assert "no chat template" in message


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "config.model.path is empty and the run has generated no data"),
        ("folder", "is a folder without config.json"),
    ],
)
def test_a_run_without_a_model_is_a_one_line_error(tmp_path: Path, error: RunMain, path: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    model = tmp_path / path if path else ""
    arguments = [SMOKE, f"--workdir={tmp_path / 'run'}", f"--config.model.path={model}", "--config.stages=('grpo',)"]
    assert message in error(*arguments)


def test_a_workdir_of_another_config_is_refused_with_the_difference(
    finished: Path, home: Path, tmp_path: Path, error: RunMain
) -> None:
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("data", "checkpoints", "export"))
    before = (tmp_path / "run" / "config.json").read_text()
    arguments = tiny_runs.command_line(home, tmp_path / "run", grpo__kl=0.2, grpo__samples=4)
    message = error(*arguments)
    assert "config.grpo.kl: 0.1 in the run, 0.2 now" in message
    assert "config.grpo.samples: 3 in the run, 4 now" in message
    assert "another --workdir" in message
    assert (tmp_path / "run" / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.json is empty."),
        ('{"seed": ', "config.json is not JSON"),
        ("[]", "config.json holds a list, not an object."),
        ('{"sede": 1}', "config.json: config.sede does not exist. Did you mean config.seed?"),
        ('{"seed": -1}', "config.json: config.seed is -1; it must be at least 0"),
    ],
)
def test_a_broken_config_json_is_a_one_line_error(tmp_path: Path, error: RunMain, text: str, message: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(text)
    assert f"{tmp_path / 'run'}/{message}" in error(SMOKE, f"--workdir={tmp_path / 'run'}")
    assert (tmp_path / "run" / "config.json").read_text() == text


def test_a_second_process_in_a_workdir_is_refused_and_writes_nothing(tmp_path: Path, error: RunMain) -> None:
    with run_lock.hold(tmp_path / "run"):
        message = error(SMOKE, f"--workdir={tmp_path / 'run'}")
        assert f"another process works in {tmp_path / 'run'}" in message
        assert [path.name for path in (tmp_path / "run").iterdir()] == [run_lock.FILE_NAME]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, error: RunMain, tmp_path: Path) -> Callable[..., config.Config]:
    """A function that gives flags to main and returns the config that it would run."""

    def parse_flags(*arguments: str) -> config.Config:
        seen: list[config.Config] = []

        def end(run_config: config.Config, workdir: Path) -> None:
            seen.append(run_config)
            sys.exit("error: seen")

        monkeypatch.setattr(main, "run", end)
        error(SMOKE, f"--workdir={tmp_path}", *arguments)
        return seen[0]

    return parse_flags


@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        (["--config.stages=('data','grpo')", "--config.stages=('evaluate',)"], ("evaluate",)),
        (["--config.stages", "('data','grpo')", "--config.stages=('sft','export')"], ("sft", "export")),
        (["--config.stages=('data',)", "--config.stages", "('evaluate',)"], ("evaluate",)),
        (["--config.stages=('data','grpo')"], ("data", "grpo")),
    ],
)
def test_the_last_value_of_a_repeated_setting_wins(
    parse: Callable[..., config.Config], arguments: list[str], stages: tuple[str, ...]
) -> None:
    repeated = ["--config.seed=1", "--config.sft.optimizer.frozen=('embed',)", "--config.seed=2"]
    parsed = parse(*repeated, *arguments, "--config.sft.optimizer.frozen=('q',)")
    assert parsed.stages == stages
    assert (parsed.seed, parsed.sft.optimizer.frozen) == (2, ("q",))


@pytest.mark.parametrize(
    ("value", "lists"),
    [
        ("exclude.jsonl", ("exclude.jsonl",)),
        ("/data/exclude.jsonl", ("/data/exclude.jsonl",)),
        ("('one.jsonl','/data/other.jsonl')", ("one.jsonl", "/data/other.jsonl")),
        ("", ()),
    ],
)
def test_lists_of_what_to_leave_out_are_one_path_or_a_tuple(
    parse: Callable[..., config.Config], value: str, lists: tuple[str, ...]
) -> None:
    assert parse(f"--config.data.exclude={value}").data.exclude == lists


def test_a_workdir_in_the_home_folder_makes_no_folder_named_tilde(
    monkeypatch: pytest.MonkeyPatch, error: RunMain, tmp_path: Path
) -> None:
    seen: list[Path] = []

    def end(run_config: config.Config, workdir: Path) -> None:
        seen.append(workdir)
        sys.exit("error: seen")

    monkeypatch.setattr(main, "run", end)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    error(SMOKE, "--workdir=~/run")
    assert seen == [tmp_path / "home" / "run"]
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without HOME and without an entry in passwd
    assert "~/run: there is no home folder (HOME is not set)" in error(SMOKE, "--workdir=~/run")
    assert not Path("~").exists()


def test_unexpected_errors_keep_their_traceback(
    tmp_path: Path, error: RunMain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception is a bug, not an error of the user."""

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(main, "run", broken)
    with pytest.raises(ZeroDivisionError):
        error(SMOKE, f"--workdir={tmp_path}")
