"""What a run reached: the headline, accuracy before and after by label, and the story of the teacher's habits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlr1_jax.evaluate import accuracy
from sqlr1_jax.report import sql_text
from sqlr1_jax.report.run_record import Evaluation, Line, RunRecord

SETS = {"heldout": "Unseen databases", "newnames": "Half-new names"}
HABITS = {
    "extra_column": "Teacher adds a column",
    "dropped_distinct": "Teacher drops DISTINCT",
    "": "No habit applies",
}
_SHOWS = {"extra_column": sql_text.extra_columns, "dropped_distinct": sql_text.lacks_distinct}


@dataclasses.dataclass(frozen=True)
class Gain:
    """An accuracy before and after, as fractions; after alone where there is no before."""

    label: str
    n: int
    before: float | None
    after: float
    interval: tuple[float, float] | None = None  # of the difference: 95 %, paired, resampled by database

    @property
    def difference(self) -> float | None:
        return None if self.before is None else self.after - self.before


def headline(record: RunRecord) -> Gain | None:
    """Greedy execution accuracy on the held-out set; None before the first evaluation."""
    if record.latest is None or "heldout" not in record.latest.figures:
        return None
    figures = record.latest.figures["heldout"]
    if not (record.before and record.after):
        return Gain("", int(figures["n"]), None, figures["ex_greedy"])
    return gain(record, "", lambda line: True)


def gain(record: RunRecord, label: str, keep: Any, name: str = "heldout") -> Gain | None:
    """Greedy accuracy before and after on a set's items that `keep` takes, paired."""
    if not record.after or not record.before:
        return None
    lines = record.after.lines.get(name, {})
    chosen = [i for i, line in lines.items() if i in record.before.lines.get(name, {}) and keep(line)]
    if not chosen:
        return None
    before, after = ({i: e.right(name)[i] for i in chosen} for e in (record.before, record.after))
    _, low, high = accuracy.paired_gain(before, after, {i: lines[i]["db_id"] for i in chosen})
    old, new = (accuracy.fraction_correct(flags.values()) for flags in (before, after))
    return Gain(label, len(chosen), old, new, (low, high))


def table(record: RunRecord) -> list[tuple[str, list[Gain]]]:
    """Every figure of every set: greedy, by vote, pass@n, well-formed."""
    if record.latest is None:
        return []
    found = []
    for name, figures in record.latest.figures.items():
        old = record.before.figures.get(name, {}) if record.after and record.before else {}
        rows = [
            Gain(_figure(key), int(figures["n"]), old.get(key), value) for key, value in figures.items() if key != "n"
        ]
        found.append((SETS[name] if record.embedded else "Held out", rows))
    return found


def _figure(key: str) -> str:
    """A figure's name in words."""
    if key.startswith("ex_vote"):
        return f"Vote of {key.removeprefix('ex_vote')}"
    if key.startswith("pass"):
        return f"pass@{key.removeprefix('pass')}"
    return {"ex_greedy": "Greedy", "well_formed": "Well-formed"}.get(key, key)


def by_field(record: RunRecord, field: str, labels: Mapping[str, str] | None = None) -> list[Gain]:
    """Accuracy by a label that the items carry (family, habit, style), hardest first unless `labels` orders them."""
    if record.after is None or record.before is None:
        return by_report(record, field, labels)
    present = dict.fromkeys(line.get(field, "") for line in record.after.lines.get("heldout", {}).values())
    if not any(present):
        return []
    wanted = [name for name in labels if name in present] if labels else list(present)
    found = [gain(record, _named(name, labels), _has(field, name)) for name in wanted]
    return _sorted((one for one in found if one), labels)


def by_report(record: RunRecord, field: str, labels: Mapping[str, str] | None = None) -> list[Gain]:
    """Accuracy by a label that only the evaluation's own report knows (complexity), without an interval."""
    if record.latest is None:
        return []
    new = record.latest.report.get("heldout", {}).get(f"by_{field}", {})
    old = record.before.report.get("heldout", {}).get(f"by_{field}", {}) if record.after and record.before else {}
    if not any(new):
        return []
    wanted = [name for name in labels if name in new] if labels else list(new)
    found = [
        Gain(_named(name, labels), int(new[name]["n"]), old.get(name, {}).get("ex"), new[name]["ex"]) for name in wanted
    ]
    return _sorted(found, labels)


def _named(name: str, labels: Mapping[str, str] | None) -> str:
    return labels[name] if labels else name.replace("_", " ") or "no label"


def _has(field: str, value: str) -> Any:
    return lambda line: line.get(field, "") == value


def _sorted(gains: Iterable[Gain], labels: Mapping[str, str] | None) -> list[Gain]:
    return list(gains) if labels else sorted(gains, key=lambda g: (-g.after, g.label))


def outcomes(record: RunRecord) -> list[tuple[str, list[tuple[str, int, float]]]]:
    """Outcomes of the greedy answers, (kind, count, fraction), before and after."""
    named = (("Before", record.before), ("After", record.after)) if record.after else (("Cold start", record.before),)
    found = []
    for name, evaluation in named:
        counts = evaluation.report.get("heldout", {}).get("outcomes", {}) if evaluation else {}
        total = sum(counts.values())
        if total:
            found.append((name, [(kind, n, n / total) for kind, n in counts.items()]))
    return found


def shown(evaluation: Evaluation | None, habits: Sequence[str] = ("extra_column", "dropped_distinct")) -> float | None:
    """The share of SQL with the teacher's habit, where one would change the result; None where there is no such SQL."""
    lines = evaluation.lines.get("heldout", {}).values() if evaluation else ()
    apt = [line for line in lines if line.get("habit") in habits and line["sql"]]
    flags = [_SHOWS[line["habit"]](line["sql"], line["gold"]) for line in apt]
    return accuracy.fraction_correct(flags) if flags else None


@dataclasses.dataclass(frozen=True)
class Story:
    """The figures of the embedded data set's story; those of `after` are None until GRPO was evaluated."""

    errors: float  # share of the golds that a habit can spoil which the teacher spoiled
    questions: int  # asked in the cold start
    apt_before: float | None  # accuracy where a habit would change the result
    apt_after: float | None
    rest_before: float | None  # elsewhere
    rest_after: float | None
    shown_before: float | None  # share of the former answers that carry the habit
    shown_after: float | None

    @property
    def learned(self) -> bool:
        """Whether the cold start took over the teacher's errors: it does worse where they matter."""
        if self.apt_before is None or self.rest_before is None:
            return False
        return self.rest_before - self.apt_before > 0.1


def story(record: RunRecord) -> Story | None:
    """The story of the fallible teacher; None where the data are not the embedded ones, or nothing was evaluated."""
    if not record.embedded or record.before is None or not any(e.get("habit") for e in _items(record.before)):
        return None
    apt, rest = ([_accuracy(e, some) for e in (record.before, record.after)] for some in (True, False))
    counts = [int(record.setting(f"data.synth.sft_{key}", 0)) for key in ("databases", "questions")]
    return Story(
        record.setting("data.synth.teacher_errors", 0.0), counts[0] * counts[1],
        apt[0], apt[1], rest[0], rest[1], shown(record.before), shown(record.after),
    )  # fmt: skip


def _items(evaluation: Evaluation) -> Iterable[Line]:
    return evaluation.lines.get("heldout", {}).values()


def _accuracy(evaluation: Evaluation | None, habit: bool) -> float | None:
    if evaluation is None:
        return None
    right = evaluation.right()
    flags = [right[line["id"]] for line in _items(evaluation) if bool(line.get("habit")) == habit]
    return accuracy.fraction_correct(flags) if flags else None


@dataclasses.dataclass(frozen=True)
class Change:
    """One held-out question whose answer changed, or did not."""

    line: Line  # the item, as last answered
    before: str  # SQL of the cold start
    outcomes: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Changes:
    """What became of the held-out questions between the evaluations."""

    counts: Mapping[str, int]  # kept, fixed, broken, still
    examples: Mapping[str, Sequence[Change]]


def changes(record: RunRecord, each: int = 3) -> Changes | None:
    """Questions by what became of them, with a few of each; those with different habits and families first."""
    if record.before is None or record.after is None:
        return None
    old, new = record.before.lines.get("heldout", {}), record.after.lines.get("heldout", {})
    right_old, right_new = record.before.right(), record.after.right()
    groups: dict[str, list[Change]] = {"fixed": [], "broken": [], "still": [], "kept": []}
    for i in (i for i in new if i in old):
        name = {(0, 1): "fixed", (1, 0): "broken", (0, 0): "still"}.get((right_old[i], right_new[i]), "kept")
        groups[name].append(Change(new[i], old[i]["sql"] or "", (old[i]["outcome"], new[i]["outcome"])))
    examples = {name: _varied(groups[name], each) for name in ("fixed", "broken", "still")}
    return Changes({name: len(items) for name, items in groups.items()}, examples)


def _varied(items: Sequence[Change], each: int) -> list[Change]:
    """The first of each (habit, family) in turn, those that a habit would change first."""
    firsts = {(c.line.get("habit", ""), c.line.get("family", "")): c for c in reversed(items)}
    seen: dict[str, int] = {}
    ranked = []
    for (habit, _), change in sorted(firsts.items(), key=lambda pair: pair[0]):
        seen[habit] = seen.get(habit, 0) + 1
        ranked.append((seen[habit], not habit, change))
    return [change for *_, change in sorted(ranked, key=lambda r: r[:2])][:each]
