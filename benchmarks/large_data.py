"""Benchmark of data at the size of SynSQL-2.5M: seconds and memory until the first step's prompts are there.

    python benchmarks/large_data.py --sample=/data/synsql_sample --folder=/tmp/synsql --records=2500000 --json

Makes a data set in --folder, unless it is there: the sample's records again and again, with questions of their own, on
`--databases` databases that have the sample's schemas and ten rows a table. Then each way of starting runs in a process
of its own, one after the other:

    cold     the first start, which makes the index
    indexed  every later start
    whole    what a small file does: reads all records and renders all prompts; of `--whole-records` records
    small    `indexed` on the same few records

Prints seconds until `--prompts` prompts of a step are rendered, those of the next step, and the peak of resident
memory; for `whole`, seconds also scaled to all records. The prompts of `small` must be those of `whole`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

ROWS = 10  # of a table
SEED = 5


def main() -> None:
    args = _parser().parse_args()
    if args.way:
        print(json.dumps(start(args)))
        return
    make_data(Path(args.sample), Path(args.folder), args.records, args.databases, args.whole_records)
    shutil.rmtree(Path(args.folder) / "cache", ignore_errors=True)
    results = {way: _run_in_process(way) for way in ("cold", "indexed", "small", "whole")}
    if results["small"]["digest"] != results["whole"]["digest"]:
        sys.exit("the prompts of an indexed file differ from those of a file that is read whole")
    for way, result in results.items():
        print(
            f"{way:8}{result['records']:9} records {result['first']:8.1f} s to the first step's prompts, "
            f"{result['next']:6.2f} s for the next, {result['gigabytes']:5.2f} GB"
        )
    scaled = results["whole"]["first"] * args.records / args.whole_records / 3600
    print(f"whole, scaled to {args.records} records: {scaled:.1f} h")
    if args.json:
        print(json.dumps(results))


def start(args: argparse.Namespace) -> dict[str, Any]:
    """One start: seconds to the prompts of step 0 and of step 1, and the peak of memory."""
    os.environ["XDG_CACHE_HOME"] = str(Path(args.folder) / "cache")
    from transformers import AutoTokenizer

    from sqlr1_jax.config import DataConfig
    from sqlr1_jax.data import example, order
    from sqlr1_jax.data.prompt import PromptRenderer

    small = args.way in ("small", "whole")
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    begin = time.perf_counter()
    spec = f"synsql:{args.folder}/{'small' if small else 'data'}.json"
    databases = str(Path(args.folder) / "databases")
    examples = example.read_examples(spec, databases, index_from=0 if args.way == "whole" else 1)
    renderer = PromptRenderer(tokenizer, DataConfig(schema="retrieved", instructions="full"))
    rendered = renderer.render_many(examples) if args.way == "whole" else None
    seconds, digest = [], hashlib.sha256()
    for step in range(2):
        indices = order.batch_indices(len(examples), args.prompts, SEED, step)
        prompts = [rendered[i] for i in indices] if rendered else renderer.render_many([examples[i] for i in indices])
        for prompt in prompts:
            digest.update(prompt.ids.tobytes())
        seconds.append(time.perf_counter() - begin)
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {
        "records": len(examples),
        "first": seconds[0],
        "next": seconds[1] - seconds[0],
        "gigabytes": gigabytes,
        "digest": digest.hexdigest(),
    }


def make_data(sample: Path, folder: Path, records: int, databases: int, whole_records: int) -> None:
    """Writes data.json with all records, small.json with the first of them, and the databases."""
    sampled = json.loads((sample / "data.json").read_text(encoding="utf-8"))
    schemas = sorted((sample / "schemas").iterdir())
    copies = -(-databases // len(schemas))  # of each schema
    for schema, copy in itertools.product(schemas, range(copies)):
        _make_database(folder / "databases" / f"{schema.stem}_{copy}.sqlite", schema)
    for file, count in (("data.json", records), ("small.json", whole_records)):
        if not (folder / file).exists():
            with (folder / f"{file}.part").open("w", encoding="utf-8") as out:
                for i in range(count):
                    record, copy = sampled[i % len(sampled)], i // len(sampled) % copies
                    changed = {"db_id": f"{record['db_id']}_{copy}", "question": f"{record['question']} ({i})"}
                    out.write(("[" if i == 0 else ",\n") + json.dumps(record | changed, indent=4))
                out.write("]")
            (folder / f"{file}.part").rename(folder / file)


def _make_database(path: Path, schema: Path) -> None:
    """A database with the sample's schema and some rows."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path.with_suffix(".part"))) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(schema.read_text(encoding="utf-8"))
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = connection.execute(f'PRAGMA table_info("{table}")').fetchall()
            rows = [[i if "INT" in c[2].upper() else f"{c[1]} {i}" for c in columns] for i in range(ROWS)]
            connection.executemany(f'INSERT OR IGNORE INTO "{table}" VALUES ({", ".join("?" * len(columns))})', rows)
        connection.commit()
    path.with_suffix(".part").rename(path)


def _run_in_process(way: str) -> dict[str, Any]:
    command = [sys.executable, *sys.argv, f"--way={way}"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip().splitlines()
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", required=True, help="folder with SynSQL records (data.json) and schemas/")
    parser.add_argument("--folder", required=True, help="folder of the data set that is made")
    parser.add_argument("--tokenizer", required=True, help="folder of a tokenizer")
    parser.add_argument("--records", type=int, default=500_000)
    parser.add_argument("--databases", type=int, default=16_583, help="at least; equally many of each schema")
    parser.add_argument("--whole-records", type=int, default=20_000, help="records of small and whole")
    parser.add_argument("--prompts", type=int, default=64, help="prompts of a step")
    parser.add_argument("--json", action="store_true", help="print the results as JSON too")
    parser.add_argument("--way", default="", help="for the benchmark's own processes")
    return parser


if __name__ == "__main__":
    main()
