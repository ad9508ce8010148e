"""The embedded data set on disk: four splits of questions, their databases, and a tokenizer trained on them.

Everything follows from (settings, seed), whatever the number of processes: each place in a split has random
numbers of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlr1_jax.synth import phrasings, tokenizer, words, worker
from sqlr1_jax.synth.worker import Job, SynthError

if TYPE_CHECKING:
    from sqlr1_jax.config import SynthConfig

SPLITS = ("sft", "grpo", "heldout", "newnames")
MARKER = "made.json"  # the settings of a complete folder
TOKENIZER_DATABASES = 500  # of the cold start
FORM = 2  # raised when the same settings come to make other data


def generate(cfg: SynthConfig, seed: int, folder: Path, log: Callable[[str], None] = lambda line: None) -> None:
    """Writes `folder` whole or not at all; returns at once where it already holds what these settings make.

    Raises `SynthError` where the folder holds something else.
    """
    folder = Path(folder).absolute()  # workers run elsewhere
    made = settings(cfg, seed)
    if _complete(folder, made):
        log(f"data: {folder} is complete")
        return
    building = folder.with_name(folder.name + ".part")
    if building.exists():
        shutil.rmtree(building)  # of a run that was killed
    building.mkdir(parents=True)
    items = _make(cfg, seed, building, log)
    _write_splits(building, items)
    values = (f"'{value}'" for value in words.values())
    names = (*words.names(words.COMMON), *words.names(words.RESERVED), *values)
    tokenizer.train(_texts(items), names, building / "tokenizer")
    (building / MARKER).write_text(json.dumps(made, indent=1) + "\n")
    building.rename(folder)


def settings(cfg: SynthConfig, seed: int) -> dict[str, Any]:
    """All that decides the content: the processes that share the work do not."""
    sizes = [f"{split}_{what}" for split in SPLITS for what in ("databases", "questions")]
    made = {"form": FORM, "seed": seed, "teacher_errors": cfg.teacher_errors}
    return made | {size: getattr(cfg, size) for size in sizes}


def _complete(folder: Path, made: dict[str, Any]) -> bool:
    """Whether the folder holds exactly this; False where there is none, or an empty one, which is removed."""
    if not folder.exists():
        return False
    marker = folder / MARKER
    if not marker.exists():
        if any(folder.iterdir()):
            raise SynthError(f"{folder} holds files but no {MARKER}: remove it, or name another workdir.")
        folder.rmdir()
        return False
    found = json.loads(marker.read_text())
    differing = [f"{key} is {found.get(key)}, not {made[key]}" for key in made if found.get(key) != made[key]]
    if differing:
        why = "; ".join(differing)
        raise SynthError(f"{folder} was made with other settings: {why}. Remove it, or set them back.")
    return True


def _make(cfg: SynthConfig, seed: int, folder: Path, log: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """Every split's items in order."""
    sizes = {s: (getattr(cfg, f"{s}_databases"), getattr(cfg, f"{s}_questions")) for s in SPLITS}
    shares = max(1, cfg.workers)
    jobs = [Job(str(folder), seed, cfg.teacher_errors, sizes, share, shares) for share in range(shares)]
    items: dict[str, list[dict[str, Any]]] = {split: [{}] * sizes[split][0] for split in SPLITS}
    total = sum(count for count, _ in sizes.values())
    for done, item in enumerate(worker.make(jobs[0]) if shares == 1 else _by_processes(jobs), 1):
        items[item["split"]][item["index"]] = item
        if done % 500 == 0 or done == total:
            log(f"data: {done} of {total} databases")
    return items


def _by_processes(jobs: list[Job]) -> Iterator[dict[str, Any]]:
    """Items of all jobs, each job in a process of its own, which ends with this one."""
    command = [sys.executable, "-m", "sqlr1_jax.synth.worker"]
    root = str(Path(__file__).resolve().parents[2])
    processes = [_start(command, root, job) for job in jobs]
    try:
        waiting = list(processes)
        while waiting:  # a line of each in turn, so that none waits long for its pipe to be read
            for process in list(waiting):
                line = process.stdout.readline() if process.stdout else ""
                if line:
                    yield json.loads(line)
                    continue
                waiting.remove(process)
                if status := process.wait():
                    raise SynthError(f"a worker of the synthetic data ended with status {status}: its error is above.")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(command: list[str], root: str, job: Job) -> subprocess.Popen[str]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it ended at once: its status says so
        process.stdin.write(json.dumps(dataclasses.asdict(job)))
        process.stdin.close()
    return process


def _write_splits(folder: Path, items: dict[str, list[dict[str, Any]]]) -> None:
    for split in SPLITS:
        records = [record for item in items[split] for record in item["records"]]
        lines = ",\n".join(json.dumps(record) for record in records)
        (folder / f"{split}.json").write_text(f"[\n{lines}\n]\n")


def _texts(items: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """What the tokenizer is trained on: all words of questions, and some of the cold start."""
    yield phrasings.all_words()
    for item in items["sft"][:TOKENIZER_DATABASES]:
        yield f"SQLite\n{item['schema']}\n"
        for record in item["records"]:
            yield "\n".join((record["question"], record["cot"], record["sql"]))
