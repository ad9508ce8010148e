"""Experiment on what GRPO adds to a cold start, against controls of the same duration, on databases not trained on.

    python benchmarks/learning.py --seeds=0,1,2 --workdir=runs/learning

Each seed has four arms. The first three start from the same cold start, whose teacher makes errors: `grpo`; `more_sft`,
more supervised steps instead; `shuffled`, GRPO with advantages shuffled within the batch. `sound_teacher` is GRPO after
a cold start without teacher errors. The number of steps of each arm is fixed, and was chosen so that the arms take the
same time. Finished runs are not repeated, and interrupted runs resume. Writes docs/reports/<date>-learning.md, which
names the commits of the runs, and prints one JSON line; docs/results.md is written by hand.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from sqlr1_jax.evaluate import accuracy
from sqlr1_jax.io import read_jsonl
from sqlr1_jax.sql.outcome import OutcomeKind
from sqlr1_jax.train import metrics

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("grpo", "more_sft", "shuffled", "sound_teacher")
SOUND = "--config.data.synth.teacher_errors=0.0"
COLD_START_STAGES = "('data','sft','evaluate','export')"
# Steps that take as long as the default's GRPO steps: of SFT, and of GRPO after a sound teacher, where few groups are
# mixed and steps are therefore short.
MORE_STEPS, SOUND_STEPS = 880, 140


def run_cold_start(workdir: Path, seed: int, arm: str, options: list[str]) -> Path:
    """Runs the cold start of an arm and returns its folder. `sound_teacher` has its own; the other arms share one."""
    sound = arm == "sound_teacher"
    folder = workdir / f"seed{seed}" / ("base_sound" if sound else "base")
    run_once(folder, seed, COLD_START_STAGES, [*options, SOUND] if sound else options)
    return folder


def run_arm(workdir: Path, seed: int, arm: str, options: list[str]) -> dict[str, Any]:
    """Runs one arm of one seed and returns its figures."""
    start = run_cold_start(workdir, seed, arm, options)
    folder = workdir / f"seed{seed}" / arm
    stage, extra = "grpo", []
    if arm == "more_sft":
        stage, extra = "sft", [f"--config.sft.steps={MORE_STEPS}"]
    elif arm == "shuffled":
        extra = ["--config.grpo.advantage.shuffled=True"]
    elif arm == "sound_teacher":
        extra = [SOUND, f"--config.grpo.steps={SOUND_STEPS}"]
    stages = f"('data','{stage}','evaluate')"
    run_once(folder, seed, stages, [*options, *extra, f"--config.model.path={start / 'export'}"])
    return arm_result(start, folder, stage)


def run_once(folder: Path, seed: int, stages: str, options: list[str]) -> None:
    """Runs sqlr1_jax.main in a folder, unless the same command has finished there.

    Raises:
      SystemExit: another command has finished there.
    """
    command = [sys.executable, "-m", "sqlr1_jax.main", "--config=configs/grpo.py", f"--workdir={folder}"]
    command += [f"--config.seed={seed}", f"--config.stages={stages}", *options]
    done, command_text = folder / "done", " ".join(command[1:])
    if not done.exists():
        print("+", command_text, file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=sys.stderr)
        (folder / "commit").write_text(read_commit())
        done.write_text(command_text)
    elif done.read_text() != command_text:
        raise SystemExit(f"{folder} has the run of `{done.read_text()}`, not of `{command_text}`. Move it away.")


def read_commit() -> str:
    """The commit of this tree, with -dirty if files differ from it; `unknown` outside a git checkout."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(git, check=False, capture_output=True, text=True).stdout.strip() or "unknown"


def read_commits(workdir: Path, seeds: list[int]) -> list[str]:
    """The commits of the runs of these seeds; `unknown` if a run has none recorded."""
    runs = [done.parent for seed in seeds for done in (workdir / f"seed{seed}").glob("*/done")]
    files = [run / "commit" for run in runs]
    return sorted({file.read_text() if file.exists() else "unknown" for file in files})


def arm_result(start: Path, folder: Path, stage: str) -> dict[str, Any]:
    """Figures of the arm's run in `folder`, which started from the cold start in `start`."""
    before, after = read_answers(start / "evaluation" / "sft"), read_answers(folder / "evaluation" / "final")
    gain, low, high = accuracy.paired_gain(before["right"], after["right"], before["database"])
    figures = json.loads((folder / "summary.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    return {
        "ex": figures["ex_greedy"], "ex_before": accuracy.fraction_correct(before["right"].values()), "gain": gain,
        "interval": [low, high], "seconds": stage_seconds(folder, stage), "steps": config[stage]["steps"],
        "vote8": figures["ex_vote8"], "pass8": figures["pass8"], "newnames": figures["final"]["newnames"]["ex_greedy"],
        "habit": _subset_gain(before, after, habit=True), "elsewhere": _subset_gain(before, after, habit=False),
        "vague": accuracy.fraction_correct(
            after["right"][i] for i, line in after["line"].items() if line["style"] == "Vague"
        ),
    }  # fmt: skip


def stage_seconds(folder: Path, stage: str) -> float:
    """Seconds of the stage's steps with compilation, evaluations and checkpoints, but without reading data."""
    steps = [line for line in metrics.read_metrics(folder / "metrics.jsonl") if line["stage"] == stage]
    return sum(line.get(f"time/{name}", 0.0) for line in steps for name in ("step", "evaluate", "checkpoint"))


def read_answers(folder: Path) -> dict[str, dict[str, Any]]:
    """The greedy answers of the held-out set: `right`, `database` and the whole `line`, each by item id."""
    lines = [line for line in read_jsonl(folder / "greedy.jsonl") if line["set"] == "heldout"]
    return {
        "right": {line["id"]: OutcomeKind(line["outcome"]).correct for line in lines},
        "database": {line["id"]: line["db_id"] for line in lines},
        "line": {line["id"]: line for line in lines},
    }


def _subset_gain(before: dict[str, dict], after: dict[str, dict], habit: bool) -> dict[str, Any]:
    """Accuracy and gain on the items whose gold the teacher's habit would change, or on the others."""
    chosen = [i for i, line in before["line"].items() if bool(line["habit"]) == habit]
    right_before, right_after = ({i: answers["right"][i] for i in chosen} for answers in (before, after))
    gain, low, high = accuracy.paired_gain(right_before, right_after, before["database"])
    return {
        "before": accuracy.fraction_correct(right_before.values()),
        "after": accuracy.fraction_correct(right_after.values()),
        "gain": gain,
        "interval": [low, high],
    }


def gain_over(workdir: Path, seeds: list[int], arm: str) -> dict[str, float]:
    """Gain of `grpo` over another arm in all seeds, paired by item, with an interval resampled by database."""
    grpo_right: dict[str, bool] = {}
    arm_right: dict[str, bool] = {}
    database: dict[str, str] = {}
    for seed in seeds:
        folder = workdir / f"seed{seed}"
        grpo, other = (read_answers(folder / name / "evaluation" / "final") for name in ("grpo", arm))
        grpo_right |= {f"{seed}/{i}": flag for i, flag in grpo["right"].items()}
        arm_right |= {f"{seed}/{i}": flag for i, flag in other["right"].items()}
        database |= {f"{seed}/{i}": f"{seed}/{name}" for i, name in grpo["database"].items()}
    gain, low, high = accuracy.paired_gain(arm_right, grpo_right, database)
    return {"gain": gain, "low": low, "high": high}


HEAD = """# What GRPO adds: measured on {date}

Written by `{command}` on {date}, on {cores} CPU cores, from runs of commit {commits}. Not edited by hand;
[results.md](../results.md) says what the figures mean.

The table gives greedy execution accuracy in per cent on databases that are not in the training data (rule `spider`,
DISTINCT kept). Gains are paired by question; their 95 % intervals are resampled by database. `habit` is the gain on
questions whose gold query a habit of the teacher, that is, a systematic error, would change; `elsewhere` is the gain on
the others. `vague`: questions that do not name the table. Minutes are those of the arm's steps and their evaluations.

For each seed, `grpo`, `more_sft` (more supervised steps instead, on the same questions) and `shuffled` (GRPO with
advantages shuffled within the batch) start from the same SFT weights, whose teacher made errors. `sound_teacher` is
GRPO after SFT from a teacher without errors.

| {columns} |
|{rule}
"""
COLUMNS = ("arm", "seed", "steps", "minutes", "before", "after", "gain [95 %]", "habit", "elsewhere", "vague",
           "new names", "vote 8", "pass@8")  # fmt: skip


def report(result: dict[str, Any]) -> str:
    """The report in Markdown; `result` is what main prints."""
    columns = " | ".join(COLUMNS)
    out = HEAD.format(
        date=result["date"], command=result["command"], cores=os.cpu_count(), commits=", ".join(result["commits"]),
        columns=columns, rule="---|" * len(COLUMNS),
    )  # fmt: skip
    for arm, lines in result["arms"].items():
        for seed, figures in zip(result["seeds"], lines, strict=True):
            out += f"| {arm} | {seed} | {' | '.join(_cells(figures))} |\n"
    out += "\nGRPO against the controls, over all seeds:\n\n"
    for arm, gain in result["grpo_against"].items():
        out += f"- {arm}: {_percent(gain['gain'], '+')} [{_percent(gain['low'], '+')}, {_percent(gain['high'], '+')}]\n"
    return out


def _cells(one: dict[str, Any]) -> list[str]:
    low, high = one["interval"]
    gain = f"{_percent(one['gain'], '+')} [{_percent(low, '+')}, {_percent(high, '+')}]"
    parts = [_percent(one[name]["gain"], "+") for name in ("habit", "elsewhere")]
    figures = [_percent(one[name]) for name in ("vague", "newnames", "vote8", "pass8")]
    return [
        str(one["steps"]),
        f"{one['seconds'] / 60:.1f}",
        _percent(one["ex_before"]),
        _percent(one["ex"]),
        gain,
        *parts,
        *figures,
    ]


def _percent(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated seeds")
    parser.add_argument("--workdir", type=Path, default=Path("runs/learning"), help="folder of all runs")
    parser.add_argument("--output", type=Path, help="file of the report (default: docs/reports/<date>-learning.md)")
    args, options = parser.parse_known_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    arms: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm in ARMS:
            arms[arm].append(run_arm(args.workdir, seed, arm, options))
    date = datetime.date.today().isoformat()
    result = {
        "benchmark": "learning",
        "date": date,
        "command": shlex.join(["python", "benchmarks/learning.py", *sys.argv[1:]]),
        "commits": read_commits(args.workdir, seeds),
        "seeds": seeds,
        "arms": arms,
        "grpo_against": {arm: gain_over(args.workdir, seeds, arm) for arm in ("more_sft", "shuffled")},
    }
    output = args.output or ROOT / "docs" / "reports" / f"{date}-learning.md"
    output.write_text(report(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
