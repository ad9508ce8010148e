"""What GRPO adds to a cold start, against controls of the same length, on databases never trained on.

    python benchmarks/learning.py --seeds=0,1,2 --workdir=runs/learning

Four arms a seed. The first three begin at the same cold start, whose teacher errs: `grpo`; `more_sft`,
supervised steps instead; `shuffled`, GRPO with advantages shuffled within the batch. `sound_teacher` is GRPO after a
cold start without teacher errors. Each has a fixed number of steps, chosen once so that the arms' minutes agree. Runs
that are there already go on where they were. Writes docs/reports/<date>-learning.md, which names the commits of the
runs, and prints one JSON line; docs/results.md is written by hand.
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
BASE_STAGES = "('data','sft','evaluate','export')"
# As long as the default's GRPO steps take: of the cold start; of GRPO where few groups are mixed, and steps short.
MORE_STEPS, SOUND_STEPS = 880, 140


def base(workdir: Path, seed: int, arm: str, options: list[str]) -> Path:
    """The cold start that an arm begins at: one for the first three arms, one with a sound teacher for the last."""
    sound = arm == "sound_teacher"
    folder = workdir / f"seed{seed}" / ("base_sound" if sound else "base")
    run_once(folder, seed, BASE_STAGES, [*options, SOUND] if sound else options)
    return folder


def run_arm(workdir: Path, seed: int, arm: str, options: list[str]) -> dict[str, Any]:
    """Runs one arm of one seed and returns its line of the result."""
    start = base(workdir, seed, arm, options)
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
    """Runs main in a folder, unless the same command has run there.

    Raises SystemExit where another command has.
    """
    command = [sys.executable, "-m", "sqlr1_jax.main", "--config=configs/grpo.py", f"--workdir={folder}"]
    command += [f"--config.seed={seed}", f"--config.stages={stages}", *options]
    done, said = folder / "done", " ".join(command[1:])
    if not done.exists():
        print("+", said, file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=sys.stderr)
        (folder / "commit").write_text(commit())
        done.write_text(said)
    elif done.read_text() != said:
        raise SystemExit(f"{folder} holds the run of `{done.read_text()}`, not of `{said}`: move it away.")


def commit() -> str:
    """The commit of this tree, with -dirty where files differ from it; unknown outside of a git checkout."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(git, check=False, capture_output=True, text=True).stdout.strip() or "unknown"


def commits(workdir: Path, seeds: list[int]) -> list[str]:
    """The commits that the runs of these seeds were made with; unknown where a run has not noted it."""
    runs = [done.parent for seed in seeds for done in (workdir / f"seed{seed}").glob("*/done")]
    notes = [run / "commit" for run in runs]
    return sorted({note.read_text() if note.exists() else "unknown" for note in notes})


def arm_result(start: Path, folder: Path, stage: str) -> dict[str, Any]:
    """An arm's figures: of the run in `folder`, which began at the cold start in `start`."""
    before, after = correct(start / "evaluation" / "sft"), correct(folder / "evaluation" / "final")
    gain, low, high = accuracy.paired_gain(before["right"], after["right"], before["database"])
    figures = json.loads((folder / "summary.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    return {
        "ex": figures["ex_greedy"], "ex_before": accuracy.fraction_correct(before["right"].values()), "gain": gain,
        "interval": [low, high], "seconds": seconds(folder, stage), "steps": config[stage]["steps"],
        "vote8": figures["ex_vote8"], "pass8": figures["pass8"], "newnames": figures["final"]["newnames"]["ex_greedy"],
        "habit": _part(before, after, habit=True), "elsewhere": _part(before, after, habit=False),
        "vague": accuracy_of(after, lambda line: line["style"] == "Vague"),
    }  # fmt: skip


def seconds(folder: Path, stage: str) -> float:
    """What the stage's steps took, their compiling, evaluations and checkpoints included; reading data not."""
    steps = [line for line in metrics.read_metrics(folder / "metrics.jsonl") if line["stage"] == stage]
    return sum(line.get(f"time/{name}", 0.0) for line in steps for name in ("step", "evaluate", "checkpoint"))


def correct(folder: Path) -> dict[str, dict[str, Any]]:
    """By item of the held-out set: right or wrong, its database, its line."""
    lines = [line for line in read_jsonl(folder / "greedy.jsonl") if line["set"] == "heldout"]
    return {
        "right": {line["id"]: OutcomeKind(line["outcome"]).correct for line in lines},
        "database": {line["id"]: line["db_id"] for line in lines},
        "line": {line["id"]: line for line in lines},
    }


def accuracy_of(items: dict[str, dict[str, Any]], keep: Any) -> float:
    return accuracy.fraction_correct(items["right"][i] for i, line in items["line"].items() if keep(line))


def _part(before: dict[str, dict], after: dict[str, dict], habit: bool) -> dict[str, Any]:
    chosen = [i for i, line in before["line"].items() if bool(line["habit"]) == habit]
    parts = [{i: one["right"][i] for i in chosen} for one in (before, after)]
    gain, low, high = accuracy.paired_gain(parts[0], parts[1], before["database"])
    return {"before": accuracy.fraction_correct(parts[0].values()),
            "after": accuracy.fraction_correct(parts[1].values()), "gain": gain, "interval": [low, high]}  # fmt: skip


def against(workdir: Path, seeds: list[int], arm: str) -> dict[str, float]:
    """How much more the first arm reaches than another: paired by item, resampled by database, over all seeds."""
    ours: dict[str, bool] = {}
    theirs: dict[str, bool] = {}
    database: dict[str, str] = {}
    for seed in seeds:
        folder = workdir / f"seed{seed}"
        one, other = (correct(folder / name / "evaluation" / "final") for name in ("grpo", arm))
        ours |= {f"{seed}/{i}": flag for i, flag in one["right"].items()}
        theirs |= {f"{seed}/{i}": flag for i, flag in other["right"].items()}
        database |= {f"{seed}/{i}": f"{seed}/{name}" for i, name in one["database"].items()}
    gain, low, high = accuracy.paired_gain(theirs, ours, database)
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
    seeds, columns = result["seeds"], " | ".join(COLUMNS)
    out = HEAD.format(
        date=result["date"], command=result["command"], cores=os.cpu_count(), commits=", ".join(result["commits"]),
        columns=columns, rule="---|" * len(COLUMNS),
    )  # fmt: skip
    for arm, lines in result["arms"].items():
        for seed, one in zip(seeds, lines, strict=True):
            out += f"| {arm} | {seed} | {' | '.join(_cells(one))} |\n"
    out += "\nGRPO against the controls, over all seeds:\n\n"
    for arm, one in result["grpo_against"].items():
        out += f"- {arm}: {_pc(one['gain'], '+')} [{_pc(one['low'], '+')}, {_pc(one['high'], '+')}]\n"
    return out


def _cells(one: dict[str, Any]) -> list[str]:
    low, high = one["interval"]
    gain = f"{_pc(one['gain'], '+')} [{_pc(low, '+')}, {_pc(high, '+')}]"
    parts = [_pc(one[name]["gain"], "+") for name in ("habit", "elsewhere")]
    figures = [_pc(one[name]) for name in ("vague", "newnames", "vote8", "pass8")]
    return [
        str(one["steps"]),
        f"{one['seconds'] / 60:.1f}",
        _pc(one["ex_before"]),
        _pc(one["ex"]),
        gain,
        *parts,
        *figures,
    ]


def _pc(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workdir", type=Path, default=Path("runs/learning"))
    parser.add_argument("--output", type=Path, help="docs/reports/<date>-learning.md unless given")
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
        "commits": commits(args.workdir, seeds),
        "seeds": seeds,
        "arms": arms,
        "grpo_against": {arm: against(args.workdir, seeds, arm) for arm in ("more_sft", "shuffled")},
    }
    output = args.output or ROOT / "docs" / "reports" / f"{date}-learning.md"
    output.write_text(report(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
