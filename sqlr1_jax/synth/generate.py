"""Writes the embedded data set: four splits of questions, their databases, and a tokenizer trained on them.

The data are a function of the settings and the seed and do not depend on the number of processes, since each database
of a split has its own random stream.
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

from sqlr1_jax.io import read_json
from sqlr1_jax.synth import phrasings, tokenizer, words, worker
from sqlr1_jax.synth.worker import Job, SynthError

if TYPE_CHECKING:
    from sqlr1_jax.config import SynthConfig

Items = dict[str, list[dict[str, Any]]]  # what worker.make yields, by split

SPLITS = ("sft", "grpo", "heldout", "newnames")
MARKER = "made.json"  # holds the settings of a complete folder
TOKENIZER_DATABASES = 500  # of the SFT split, whose text the tokenizer is trained on
FORMAT_VERSION = 2  # raised whenever the same settings and seed would make other data


def generate(config: SynthConfig, seed: int, folder: Path, log: Callable[[str], None] = lambda line: None) -> None:
    """Writes `folder`, completely or not at all; returns at once if it already has the data of these settings.

    Raises:
      SynthError: the folder holds something else, or a worker failed.
    """
    folder = Path(folder).absolute()  # workers run in another folder
    marker = settings(config, seed)
    if _is_complete(folder, marker):
        log(f"data: {folder} is complete")
        return
    building = folder.with_name(folder.name + ".part")
    if building.exists():
        shutil.rmtree(building)  # a killed run left it
    building.mkdir(parents=True)
    items = _make_items(config, seed, building, log)
    for split in SPLITS:
        lines = ",\n".join(json.dumps(record) for item in items[split] for record in item["records"])
        (building / f"{split}.json").write_text(f"[\n{lines}\n]\n")
    values = (f"'{value}'" for value in words.values())
    names = (*words.names(words.COMMON), *words.names(words.RESERVED), *values)
    tokenizer.train(_texts(items), names, building / "tokenizer")
    (building / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
    building.rename(folder)


def settings(config: SynthConfig, seed: int) -> dict[str, Any]:
    """The settings that determine the content: all except the number of processes."""
    sizes = [f"{split}_{unit}" for split in SPLITS for unit in ("databases", "questions")]
    content = {"form": FORMAT_VERSION, "seed": seed, "teacher_errors": config.teacher_errors}
    return content | {size: getattr(config, size) for size in sizes}


def _is_complete(folder: Path, expected: dict[str, Any]) -> bool:
    """Whether the folder holds the data of these settings. Removes an empty folder."""
    if not folder.exists():
        return False
    marker = folder / MARKER
    if not marker.exists():
        if any(folder.iterdir()):
            raise SynthError(f"{folder} holds files but no {MARKER}: remove it, or name another workdir.")
        folder.rmdir()
        return False
    actual = read_json(marker)
    differing = [
        f"{key} is {actual.get(key)}, not {value}" for key, value in expected.items() if actual.get(key) != value
    ]
    if differing:
        reasons = "; ".join(differing)
        raise SynthError(f"{folder} was made with other settings: {reasons}. Remove it, or set them back.")
    return True


def _make_items(config: SynthConfig, seed: int, folder: Path, log: Callable[[str], None]) -> Items:
    """The items of each split, in the order of their index."""
    sizes = {s: (getattr(config, f"{s}_databases"), getattr(config, f"{s}_questions")) for s in SPLITS}
    shares = max(1, config.workers)
    jobs = [Job(str(folder), seed, config.teacher_errors, sizes, share, shares) for share in range(shares)]
    items: Items = {split: [{}] * sizes[split][0] for split in SPLITS}
    total = sum(count for count, _ in sizes.values())
    for done, item in enumerate(worker.make(jobs[0]) if shares == 1 else _run_workers(jobs), 1):
        items[item["split"]][item["index"]] = item
        if done % 500 == 0 or done == total:
            log(f"data: {done} of {total} databases")
    return items


def _run_workers(jobs: list[Job]) -> Iterator[dict[str, Any]]:
    """Yields the items of all jobs, each of which runs in its own process. No process outlives this generator."""
    processes = [_start_worker(job) for job in jobs]
    try:
        waiting = list(processes)
        while waiting:  # read a line of each in turn, so that no worker waits long on a full pipe
            for process in list(waiting):
                line = process.stdout.readline() if process.stdout else ""
                if line:
                    yield json.loads(line)
                    continue
                waiting.remove(process)
                if status := process.wait():
                    raise SynthError(f"a worker of the synthetic data exited with status {status}: its error is above.")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start_worker(job: Job) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sqlr1_jax.synth.worker"]
    root = Path(__file__).resolve().parents[2]  # the folder of the package, which need not be installed
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it exited at once: its status is read later
        process.stdin.write(json.dumps(dataclasses.asdict(job)))
        process.stdin.close()
    return process


def _texts(items: Items) -> Iterator[str]:
    """The text that the tokenizer is trained on: all words of questions, and a part of the SFT split."""
    yield phrasings.all_words()
    for item in items["sft"][:TOKENIZER_DATABASES]:
        yield f"SQLite\n{item['schema']}\n"
        for record in item["records"]:
            yield "\n".join((record["question"], record["cot"], record["sql"]))
