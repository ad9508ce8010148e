"""report.html: one self-contained page that tells what a run did, as far as it has come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sqlr1_jax import config
from sqlr1_jax.io import atomic_write_text
from sqlr1_jax.report import curves, results, run_record, samples, sql_text, times
from sqlr1_jax.report.charts import number
from sqlr1_jax.report.run_record import RunRecord

TEMPLATES = Path(__file__).parent / "templates"
COMPLEXITIES = ("Simple", "Moderate", "Complex", "Highly Complex", "simple", "moderate", "challenging")


def write(workdir: Path) -> None:
    """Writes <workdir>/report.html, whole or not at all.

    Raises:
      FileNotFoundError: the folder holds no run.
    """
    atomic_write_text(workdir / "report.html", render(run_record.read_run(workdir)))


def render(record: RunRecord) -> str:
    """The page's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "number": number, "percent": lambda value: number(value, True), "points": points,
        "direction": direction, "seconds": times.words, "highlight": sql_text.highlight, "cell": cell,
    }  # fmt: skip
    environment.globals |= {"include_raw": lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))}
    return environment.get_template("report.html").render(**context(record))


def context(record: RunRecord) -> dict[str, Any]:
    """What the template shows; a part that the run has not reached is empty."""
    return {
        "record": record,
        "name": record.workdir.resolve().name,
        "about": about(record),
        "progress": progress(record),
        "headline": results.headline(record),
        "table": results.table(record),
        "story": results.story(record),
        "breakdowns": breakdowns(record),
        "families": results.by_field(record, "family"),
        "outcomes": results.outcomes(record),
        "tones": curves.OUTCOMES,
        "changes": results.changes(record),
        "compared": sql_text.compared,
        "grpo": curves.grpo(record),
        "sft": curves.sft(record),
        "stages": times.by_stage(record),
        "parts": [(times.STAGES[name], times.by_part(record, name)) for name in ("sft", "grpo")],
        "samples": samples.samples(record),
        "settings": settings(record.config),
    }


def about(record: RunRecord) -> list[tuple[str, str]]:
    """The run in a few words: what is trained on what."""
    source = record.setting("data.train", "")
    return [
        ("Model", record.setting("model.path") or f"{record.setting('model.size')}, from random weights"),
        ("Data", "synthetic databases, made by the run" if source.startswith("synth:") else source),
        ("Answers", {"reasoning": "reasoning, then SQL"}.get(record.setting("data.form"), "SQL alone")),
        ("Seed", str(record.setting("seed"))),
    ]


def progress(record: RunRecord) -> list[tuple[str, int, int]]:
    """(stage, steps done, steps asked) of the stages that count steps."""
    stages = [name for name in ("sft", "grpo") if name in record.setting("stages", ())]
    last = {name: lines[-1]["step"] for name, lines in record.metrics.items() if lines}
    return [(times.STAGES[name], last.get(name, 0), record.setting(f"{name}.steps", 0)) for name in stages]


def breakdowns(record: RunRecord) -> list[tuple[str, str, list[results.Gain]]]:
    """(title, hint, rows) of accuracy by each label that the held-out set has."""
    complexity = {name: name for name in COMPLEXITIES}
    found = [
        ("By the teacher's habit", "Where copying the cold start's teacher would give another result.",
         results.by_field(record, "habit", results.HABITS)),
        ("By complexity", "", results.by_report(record, "complexity", complexity)),
        ("By style of question", "A vague question does not name the table.", results.by_field(record, "style")),
    ]  # fmt: skip
    return [(title, hint, rows) for title, hint, rows in found if len(rows) > 1]


def points(difference: float | None) -> str:
    """A difference of fractions in percentage points, with its sign."""
    if difference is None:
        return ""
    text = f"{100 * difference:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def direction(gain: results.Gain) -> str:
    """A CSS class: better, worse, or none where there is no difference, or an interval that holds zero."""
    if gain.interval and gain.interval[0] <= 0 <= gain.interval[1]:
        return ""
    return {"+": "better", "−": "worse"}.get(points(gain.difference)[:1], "")


def cell(value: Any) -> str:
    """A result's cell as text."""
    return "NULL" if value is None else str(value)


def settings(values: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """(group, [(name, value, whether it differs from the default)]) of config.json."""
    default = dict(config.leaves(config.as_dict(config.Config())))
    groups: dict[str, list[tuple[str, str, bool]]] = {}
    for path, value in config.leaves(values):
        group, _, name = path.rpartition(".")
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        same = path in default and _plain(default[path]) == _plain(value)
        groups.setdefault(group or "run", []).append((name, text or "–", not same))
    return list(groups.items())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
