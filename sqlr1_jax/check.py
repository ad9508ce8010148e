"""python -m sqlr1_jax.check --data=spider:/data/spider --output=exclude.jsonl: what is wrong with a data set.

Runs every gold and reads it by rules, before anything is trained. --output lists what training leaves out by
--config.data.exclude; --report lists everything found, with question and SQL. docs/data.md says what the rules are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from sqlr1_jax import config
from sqlr1_jax.data import example
from sqlr1_jax.data.example import Example
from sqlr1_jax.data.prompt import PromptRenderer
from sqlr1_jax.errors import ConfigError, exit_on_error
from sqlr1_jax.io import atomic_write_text
from sqlr1_jax.lint import preflight
from sqlr1_jax.lint.preflight import RULES, Finding
from sqlr1_jax.model import tokenizer
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.result_cache import default_folder

IDS_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Checked:
    """A data set and all that was found in it."""

    examples: Sequence[Example]
    records: int  # examples and what was set aside
    findings: Sequence[Finding]
    seconds: float
    from_disk: float  # fraction of queries whose outcome was known


def check(args: argparse.Namespace) -> Checked:
    """Reads and checks the data set that the command line names.

    Raises:
      example.ExampleError: there is no such data.
      ConfigError: a setting or the tokenizer cannot be used.
    """
    begin = time.monotonic()
    settings = config.ExecuteConfig(workers=args.workers, max_steps=args.max_steps, gold_cache_dir=args.cache)
    data = config.DataConfig(schema=args.schema, instructions="full", max_prompt_tokens=args.max_prompt_tokens)
    config.check(config.Config(execute=settings, data=data))
    prompts = PromptRenderer(tokenizer.load(args.tokenizer), data) if args.tokenizer else None
    examples, set_aside = example.read_all_records(args.data, args.databases, args.limit)
    findings = preflight.of_records(set_aside)
    with Executor(settings) as executor, tqdm(total=len(examples), unit=" golds", disable=args.quiet) as bar:
        run = preflight.Preflight(executor, prompts)
        for count, found in run.findings(examples):
            findings += found
            bar.update(count)
    order = {one.id: place for place, one in enumerate(examples)}
    findings.sort(key=lambda found: order.get(found.id, -1))
    return Checked(examples, len(examples) + len(set_aside), findings, time.monotonic() - begin, run.from_disk)


def summary(checked: Checked, rules: Sequence[str]) -> str:
    """What was found, by rule, and what to do with it."""
    databases = len({one.database for one in checked.examples})
    golds = len({(one.database, one.sql) for one in checked.examples})
    lines = [
        f"{checked.records} records: {len(checked.examples)} examples, {golds} golds, {databases} databases; "
        f"{checked.seconds:.0f} s, {checked.from_disk:.0%} of queries known from disk",
        "",
        f"{'rule':<18}{'examples':>9}  {'':<9} what it finds",
    ]
    by_rule: dict[str, list[str]] = {}
    for found in checked.findings:
        by_rule.setdefault(found.rule, []).append(found.id)
    for rule, what in RULES.items():
        if ids := by_rule.get(rule):
            mark = "left out" if rule in rules else "reported"
            shown = ", ".join(ids[:IDS_SHOWN]) + ", …" * (len(ids) > IDS_SHOWN)
            lines.append(f"{rule:<18}{len(ids):>9}  {mark:<9} {what.meaning} ({shown})")
    left = {found.id: found.db_id for found in checked.findings if found.rule in rules}
    lines += ["", f"{len(left)} of {checked.records} are left out; {checked.records - len(left)} remain."]
    lines += _worst(checked, Counter(left.values()))
    return "\n".join(lines)


def _worst(checked: Checked, left: Counter[str]) -> list[str]:
    """The databases that lose more than half of their examples: it is they who want repair."""
    sizes = Counter(one.db_id for one in checked.examples)
    halved = [f"{name} ({count} of {sizes[name]})" for name, count in left.most_common() if 2 * count > sizes[name]]
    return [f"Databases that lose more than half of their examples: {', '.join(halved)}."] if halved else []


def write_excluded(path: Path, checked: Checked, rules: Sequence[str]) -> None:
    """The list that training leaves out: a line {id, db_id, rule, reason} for each finding of the rules."""
    _write_lines(path, [dataclasses.asdict(found) for found in checked.findings if found.rule in rules])


def write_report(path: Path, checked: Checked) -> None:
    """Every finding, with its question and SQL for a person to read."""
    examples = {one.id: one for one in checked.examples}
    lines = []
    for found in checked.findings:
        one = examples.get(found.id)
        lines.append(dataclasses.asdict(found) | ({"question": one.question, "sql": one.sql} if one else {}))
    _write_lines(path, lines)


def _write_lines(path: Path, records: Sequence[dict[str, str]]) -> None:
    atomic_write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> None:
    """The command; `argv` without the program's name."""
    args = _parser().parse_args(argv)
    rules = _rules(args.rules)
    for path in filter(None, (args.output, args.report)):
        if not path.parent.is_dir():
            raise ConfigError(f"{path.parent} is no folder: make it, or name another place for {path.name}.")
    checked = check(args)
    if args.output:
        write_excluded(args.output, checked, rules)
    if args.report:
        write_report(args.report, checked)
    print(summary(checked, rules))
    if args.output:
        print(f"Train without them: --config.data.exclude={args.output}")


def _rules(text: str) -> tuple[str, ...]:
    """The rules that leave an example out. Raises ConfigError for a name that is none."""
    if not text:
        return tuple(name for name, rule in RULES.items() if rule.left_out)
    names = tuple(text.split(","))
    for name in names:
        if name not in RULES or name == "bad_record":
            able = ", ".join(rule for rule in RULES if rule != "bad_record")
            raise ConfigError(f"--rules: {name!r} leaves nothing out; it takes names of {able}.")
    return names


def _parser() -> argparse.ArgumentParser:
    what = "Says what is wrong with a data set, and lists what training should leave out."
    parser = argparse.ArgumentParser(prog="python -m sqlr1_jax.check", description=what)
    default = config.DataConfig()
    add = parser.add_argument
    add("--data", required=True, help="PREFIX:PATH, as in spider:/data/spider")
    add("--databases", default="", help="folder of <db_id>/<db_id>.sqlite; beside the data unless given")
    add("--output", type=Path, help="the list to leave out of training, JSONL of {id, db_id, rule, reason}")
    add("--report", type=Path, help="everything found, JSONL with question and SQL")
    add("--rules", default="", help="rules that leave out, comma-separated; default: all marked so in docs/data.md")
    add("--workers", type=int, default=2, help="processes that run SQL")
    add("--max_steps", type=int, default=config.ExecuteConfig().max_steps, help="SQLite's steps a gold may take")
    add("--limit", type=int, default=0, help="first N examples; 0 for all")
    add("--cache", default=default_folder(), help="folder of known results; empty: none is kept")
    add("--tokenizer", default="", help="folder of the model's tokenizer; prompts' lengths are checked only with it")
    add("--schema", default="retrieved", help="form in which prompts show the schema: data/schema.py")
    add("--max_prompt_tokens", type=int, default=default.max_prompt_tokens, help="a prompt's budget")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    main()
