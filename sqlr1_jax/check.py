"""python -m sqlr1_jax.check --data=spider:/data/spider --output=exclude.jsonl: finds what is wrong with a data set.

Runs every gold query and applies rules to it, before training. --output writes the list that training leaves out with
--config.data.exclude; --report writes every finding with its question and SQL. docs/data.md describes the rules.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sqlr1_jax import config
from sqlr1_jax.data.example import Example, read_all_records, source_name
from sqlr1_jax.data.prompt import PromptRenderer
from sqlr1_jax.errors import ConfigError, exit_on_error
from sqlr1_jax.io import user_path, write_jsonl
from sqlr1_jax.lint import preflight
from sqlr1_jax.lint.preflight import RULES, Finding
from sqlr1_jax.model import tokenizer
from sqlr1_jax.progress import Progress, print_line
from sqlr1_jax.sql.executor import Executor
from sqlr1_jax.sql.result_cache import default_folder
from sqlr1_jax.terminal import one_line, printable

IDS_SHOWN = 3  # ids per rule in the summary
DATABASES_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """A data set and every finding in it."""

    examples: Sequence[Example]
    set_aside: Sequence[Finding]  # one for each record that could not become an example
    findings: Sequence[Finding]  # of examples and of those records
    seconds: float
    from_disk: float  # the fraction of queries whose outcome was known from disk


def check(args: argparse.Namespace) -> CheckResult:
    """Reads and checks the data set that the command line names.

    Raises:
      ExampleError: the data cannot be read.
      ConfigError: a setting or the tokenizer cannot be used.
    """
    start = time.monotonic()
    execute_config = config.ExecuteConfig(workers=args.workers, max_steps=args.max_steps, gold_cache_dir=args.cache)
    data_config = config.DataConfig(
        schema=args.schema, instructions="full", max_prompt_tokens=args.max_prompt_tokens, limit=args.limit
    )
    config.check(config.Config(execute=execute_config, data=data_config))
    prompts = PromptRenderer(tokenizer.load(args.tokenizer), data_config) if args.tokenizer else None
    examples, set_aside = read_all_records(args.data, args.databases, args.limit)
    of_records = preflight.record_findings(set_aside)
    findings = list(of_records)
    report = (lambda line: None) if args.quiet else print_line
    progress = Progress("checking", len(examples), "example", report=report, bar=not args.quiet)
    with Executor(execute_config) as executor, progress:
        checks = preflight.Preflight(executor, prompts)
        for count, of_database in checks.findings(examples):
            findings += of_database
            progress.update(count)
    order = {example.id: i for i, example in enumerate(examples)}
    findings.sort(key=lambda finding: order.get(finding.id, -1))
    return CheckResult(examples, of_records, findings, time.monotonic() - start, checks.from_disk)


def summary(result: CheckResult, rules: Sequence[str]) -> str:
    """The text that the command prints: the findings by rule, and how many records remain as examples to learn from."""
    databases = len({example.database for example in result.examples})
    queries = len({(example.database, example.sql) for example in result.examples})
    num_records = len(result.examples) + len(result.set_aside)
    lines = [
        f"{num_records} records: {len(result.examples)} examples, {queries} gold queries, {databases} databases"
        f"; {result.seconds:.0f} s, {result.from_disk:.0%} of queries known from disk",
        "",
        f"{'rule':<18}{'records':>9}  {'':<9} what it finds",
    ]
    by_rule: dict[str, list[str]] = {}
    for finding in result.findings:
        by_rule.setdefault(finding.rule, []).append(finding.id)
    for name, rule in RULES.items():
        if ids := by_rule.get(name):
            action = "left out" if name in rules else "reported"
            first_ids = ", ".join(map(one_line, ids[:IDS_SHOWN])) + ", …" * (len(ids) > IDS_SHOWN)
            lines.append(f"{name:<18}{len(ids):>9}  {action:<9} {rule.meaning} ({first_ids})")
    return "\n".join([*lines, "", *_losses(result, rules, num_records)])


def _losses(result: CheckResult, rules: Sequence[str], num_records: int) -> list[str]:
    """How many records are left out, cannot be used, and remain, together all; which databases lose most of theirs."""
    ids = {finding.id for finding in result.findings if finding.rule in rules}
    lost = Counter(example.db_id for example in result.examples if example.id in ids)
    lost.update(finding.db_id for finding in result.set_aside if finding.rule in rules)
    sizes = Counter(record.db_id for records in (result.examples, result.set_aside) for record in records)
    unusable = sum(finding.rule not in rules for finding in result.set_aside)
    remain = num_records - lost.total() - unusable
    also = f"{unusable} more cannot be used; " if unusable else ""
    lines = [f"{lost.total()} of {num_records} are left out; {also}{remain} remain."]
    worst = [f"{one_line(name)} ({n} of {sizes[name]})" for name, n in lost.most_common() if 2 * n > sizes[name]]
    if worst:
        more = f" and {len(worst) - DATABASES_SHOWN} more" if len(worst) > DATABASES_SHOWN else ""
        shown = ", ".join(worst[:DATABASES_SHOWN])
        lines.append(f"Databases that lose more than half of their records: {shown}{more}.")
    return lines


def write_report(path: Path, result: CheckResult) -> None:
    """Writes every finding with its question and SQL, for a person to read."""
    examples = {example.id: example for example in result.examples}
    lines = []
    for finding in result.findings:
        example = examples.get(finding.id)
        lines.append(
            dataclasses.asdict(finding) | ({"question": example.question, "sql": example.sql} if example else {})
        )
    write_jsonl(path, lines, ensure_ascii=False)


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is the command line without the program's name."""
    args = _parser().parse_args(argv)
    rules = _parse_rules(args.rules)
    for path in filter(None, (args.output, args.report)):
        if not path.parent.is_dir():
            raise ConfigError(f"{path.parent} is not a folder: create it, or choose another for {path.name}.")
    result = check(args)
    if args.output:
        findings = [dataclasses.asdict(finding) for finding in result.findings if finding.rule in rules]
        source = {"source": source_name(args.data)}  # training applies the list to this file only
        write_jsonl(args.output, [finding | source for finding in findings], ensure_ascii=False)
    if args.report:
        write_report(args.report, result)
    print(printable(summary(result, rules)))
    if args.output:
        print(f"Train without them: --config.data.exclude={args.output}")


def _parse_rules(text: str) -> tuple[str, ...]:
    """The rules whose findings are left out, by default those that are marked so.

    Raises:
      ConfigError: a name is not a rule, or is bad_record, whose records never become examples.
    """
    if not text:
        return tuple(name for name, rule in RULES.items() if rule.left_out)
    names = tuple(text.split(","))
    for name in names:
        if name not in RULES or name == "bad_record":
            known = ", ".join(rule for rule in RULES if rule != "bad_record")
            raise ConfigError(f"--rules: {name!r} leaves nothing out; choose from {known}.")
    return names


def _parser() -> argparse.ArgumentParser:
    description = "Finds what is wrong with a data set, and lists the examples that training should leave out."
    parser = argparse.ArgumentParser(prog="python -m sqlr1_jax.check", description=description)
    default = config.DataConfig()
    add = parser.add_argument
    add("--data", required=True, help="PREFIX:PATH, as in spider:/data/spider")
    add("--databases", default="", help="folder of <db_id>/<db_id>.sqlite; default: next to the data")
    add(
        "--output",
        type=user_path,
        help="file for the list to leave out of training: JSONL of {id, db_id, rule, reason, source}",
    )
    add("--report", type=user_path, help="file for every finding: JSONL with question and SQL")
    add(
        "--rules",
        default="",
        help="rules whose findings are left out, comma-separated; default: those marked so in docs/data.md",
    )
    add("--workers", type=int, default=2, help="processes that run SQL")
    add(
        "--max_steps",
        type=int,
        default=config.ExecuteConfig().max_steps,
        help="step limit of a gold query, in SQLite's virtual-machine steps",
    )
    add("--limit", type=int, default=0, help="check only the first N examples; 0: all")
    add("--cache", default=default_folder(), help="folder that keeps results for later runs; empty: none")
    add("--tokenizer", default="", help="folder of the model's tokenizer; without it no prompt length is checked")
    add(
        "--schema",
        default="retrieved",
        help="schema format of the prompts: retrieved, fixed, qualified, compact or rows",
    )
    add("--max_prompt_tokens", type=int, default=default.max_prompt_tokens, help="longest prompt allowed")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    main()
