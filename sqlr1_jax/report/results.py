"""The results that the report shows: accuracy before and after GRPO, the teacher's errors, and changed answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from sqlr1_jax.evaluate import accuracy
from sqlr1_jax.report import sql_text
from sqlr1_jax.report.run_record import Evaluation, Line, RunRecord

SETS = {"heldout": "Unseen databases", "newnames": "Half-new names"}
HABITS = {
    "extra_column": "Teacher adds a column",
    "dropped_distinct": "Teacher drops DISTINCT",
    "": "No habit applies",
}
_HAS_HABIT = {"extra_column": sql_text.has_extra_columns, "dropped_distinct": sql_text.lacks_distinct}


@dataclasses.dataclass(frozen=True)
class Gain:
    """An accuracy before and after GRPO, as fractions. `before` is None if there is nothing to compare with."""

    label: str
    n: int  # questions
    before: float | None
    after: float
    interval: tuple[float, float] | None = None  # of the difference: 95 %, paired, resampled by database

    @property
    def difference(self) -> float | None:
        """The change in accuracy, after minus before; None if there is no earlier figure."""
        return None if self.before is None else self.after - self.before


def headline(record: RunRecord) -> Gain | None:
    """Greedy execution accuracy on the held-out set; None before the first evaluation."""
    if record.latest is None or "heldout" not in record.latest.figures:
        return None
    figures = record.latest.figures["heldout"]
    if not (record.before and record.after):
        return Gain("", int(figures["n"]), None, figures["ex_greedy"])
    return gain(record, "", lambda line: True)


def gain(record: RunRecord, label: str, keep: Callable[[Line], bool], set_name: str = "heldout") -> Gain | None:
    """Greedy accuracy before and after on the questions that `keep` selects; None if there are none."""
    if not record.after or not record.before:
        return None
    lines, lines_before = record.after.lines.get(set_name, {}), record.before.lines.get(set_name, {})
    ids = [i for i, line in lines.items() if i in lines_before and keep(line)]
    if not ids:
        return None
    correct_before, correct_after = record.before.correct(set_name), record.after.correct(set_name)
    before, after = {i: correct_before[i] for i in ids}, {i: correct_after[i] for i in ids}
    _, low, high = accuracy.paired_gain(before, after, {i: lines[i]["db_id"] for i in ids})
    fractions = [accuracy.fraction_correct(flags.values()) for flags in (before, after)]
    return Gain(label, len(ids), fractions[0], fractions[1], (low, high))


def table(record: RunRecord) -> list[tuple[str, list[Gain]]]:
    """(set, rows) with every figure of figures.json: greedy, vote, pass@n, well-formed."""
    if record.latest is None:
        return []
    sets = []
    for name, figures in record.latest.figures.items():
        before = record.before.figures.get(name, {}) if record.after and record.before else {}
        n = int(figures["n"])
        rows = [Gain(_figure_label(key), n, before.get(key), value) for key, value in figures.items() if key != "n"]
        sets.append((SETS[name] if record.embedded else "Held out", rows))
    return sets


def _figure_label(key: str) -> str:
    if key.startswith("ex_vote"):
        return f"Vote of {key.removeprefix('ex_vote')}"
    if key.startswith("pass"):
        return f"pass@{key.removeprefix('pass')}"
    return {"ex_greedy": "Greedy", "well_formed": "Well-formed"}.get(key, key)


def by_field(record: RunRecord, field: str, labels: Mapping[str, str] | None = None) -> list[Gain]:
    """Gains by a field of the evaluation's lines (family, habit, style), with intervals.

    The rows are those of `labels` and in its order, or without it all values, best first.
    """
    if record.after is None or record.before is None:
        return by_report(record, field, labels)
    present = dict.fromkeys(line.get(field, "") for line in record.after.lines.get("heldout", {}).values())
    if not any(present):
        return []
    values = [value for value in labels if value in present] if labels else list(present)
    gains = [gain(record, _label(value, labels), _field_equals(field, value)) for value in values]
    return _sorted((row for row in gains if row), labels)


def by_report(record: RunRecord, field: str, labels: Mapping[str, str] | None = None) -> list[Gain]:
    """Gains by a label of the evaluation's greedy.json (such as complexity), without intervals; rows as `by_field`."""
    if record.latest is None:
        return []
    after = record.latest.report.get("heldout", {}).get(f"by_{field}", {})
    before = record.before.report.get("heldout", {}).get(f"by_{field}", {}) if record.after and record.before else {}
    if not any(after):
        return []
    values = [value for value in labels if value in after] if labels else list(after)
    gains = [
        Gain(_label(value, labels), int(after[value]["n"]), before.get(value, {}).get("ex"), after[value]["ex"])
        for value in values
    ]
    return _sorted(gains, labels)


def _label(value: str, labels: Mapping[str, str] | None) -> str:
    return labels[value] if labels else value.replace("_", " ") or "no label"


def _field_equals(field: str, value: str) -> Callable[[Line], bool]:
    return lambda line: line.get(field, "") == value


def _sorted(gains: Iterable[Gain], labels: Mapping[str, str] | None) -> list[Gain]:
    return list(gains) if labels else sorted(gains, key=lambda row: (-row.after, row.label))


def outcomes(record: RunRecord) -> list[tuple[str, list[tuple[str, int, float]]]]:
    """(title, [(kind, count, fraction)]) of the greedy answers, before and after."""
    titled = (("Before", record.before), ("After", record.after)) if record.after else (("Cold start", record.before),)
    found = []
    for title, evaluation in titled:
        counts = evaluation.report.get("heldout", {}).get("outcomes", {}) if evaluation else {}
        total = sum(counts.values())
        if total:
            found.append((title, [(kind, n, n / total) for kind, n in counts.items()]))
    return found


def habit_share(evaluation: Evaluation | None, habits: Collection[str] = _HAS_HABIT.keys()) -> float | None:
    """Fraction of SQL answers with the teacher's habit, where it would change the result; None without such answers."""
    lines = _heldout_lines(evaluation) if evaluation else ()
    apt = [line for line in lines if line.get("habit") in habits and line["sql"]]
    flags = [_HAS_HABIT[line["habit"]](line["sql"], line["gold"]) for line in apt]
    return accuracy.fraction_correct(flags) if flags else None


@dataclasses.dataclass(frozen=True)
class Story:
    """What the embedded data set demonstrates: the cold start learns the teacher's errors, and GRPO corrects them.

    Figures of `after` are None before GRPO is evaluated.
    """

    teacher_errors: float  # fraction of the gold queries that the teacher spoiled, of those that a habit can spoil
    questions: int  # of the cold start
    habit_before: float | None  # accuracy on questions where a habit would change the result
    habit_after: float | None
    other_before: float | None  # accuracy on all other questions
    other_after: float | None
    share_before: float | None  # fraction of answers with the habit, where it would change the result
    share_after: float | None

    @property
    def learned(self) -> bool:
        """Whether the cold start learned the teacher's errors: its accuracy is lower where they matter."""
        if self.habit_before is None or self.other_before is None:
            return False
        return self.other_before - self.habit_before > 0.1


def story(record: RunRecord) -> Story | None:
    """The story of the teacher's errors; None for other data, and before the first evaluation."""
    if not record.embedded or record.before is None or not any(e.get("habit") for e in _heldout_lines(record.before)):
        return None
    databases, per_database = (int(record.setting(f"data.synth.sft_{key}", 0)) for key in ("databases", "questions"))
    return Story(
        teacher_errors=record.setting("data.synth.teacher_errors", 0.0),
        questions=databases * per_database,
        habit_before=_accuracy(record.before, with_habit=True),
        habit_after=_accuracy(record.after, with_habit=True),
        other_before=_accuracy(record.before, with_habit=False),
        other_after=_accuracy(record.after, with_habit=False),
        share_before=habit_share(record.before),
        share_after=habit_share(record.after),
    )


def _heldout_lines(evaluation: Evaluation) -> Iterable[Line]:
    return evaluation.lines.get("heldout", {}).values()


def _accuracy(evaluation: Evaluation | None, with_habit: bool) -> float | None:
    if evaluation is None:
        return None
    correct = evaluation.correct()
    flags = [correct[line["id"]] for line in _heldout_lines(evaluation) if bool(line.get("habit")) == with_habit]
    return accuracy.fraction_correct(flags) if flags else None


@dataclasses.dataclass(frozen=True)
class Change:
    """One held-out question before and after GRPO."""

    line: Line  # of the evaluation after GRPO
    before: str  # SQL before GRPO; "" if the answer had none
    outcomes: tuple[str, str]  # before, after


@dataclasses.dataclass(frozen=True)
class Changes:
    """The held-out questions by the correctness of their answers before and after GRPO.

    The keys are fixed (wrong, then right), broken (right, then wrong), still_wrong and still_right.
    """

    counts: Mapping[str, int]
    examples: Mapping[str, Sequence[Change]]  # without still_right


def changes(record: RunRecord, per_kind: int = 3) -> Changes | None:
    """Questions by how their answers changed, with `per_kind` varied examples; None before GRPO is evaluated."""
    if record.before is None or record.after is None:
        return None
    before, after = record.before.lines.get("heldout", {}), record.after.lines.get("heldout", {})
    correct_before, correct_after = record.before.correct(), record.after.correct()
    kinds = {(0, 1): "fixed", (1, 0): "broken", (0, 0): "still_wrong", (1, 1): "still_right"}
    groups: dict[str, list[Change]] = {kind: [] for kind in kinds.values()}
    for i in (i for i in after if i in before):
        kind = kinds[correct_before[i], correct_after[i]]
        change = Change(after[i], before[i]["sql"] or "", (before[i]["outcome"], after[i]["outcome"]))
        groups[kind].append(change)
    examples = {kind: _varied(group, per_kind) for kind, group in groups.items() if kind != "still_right"}
    return Changes({kind: len(group) for kind, group in groups.items()}, examples)


def _varied(group: Sequence[Change], count: int) -> list[Change]:
    """Examples with different habits and families: the first of each family, alternating between habits."""
    first_of = {(c.line.get("habit", ""), c.line.get("family", "")): c for c in reversed(group)}
    seen: dict[str, int] = {}
    ranked = []
    for (habit, _), change in sorted(first_of.items(), key=lambda pair: pair[0]):
        seen[habit] = seen.get(habit, 0) + 1
        ranked.append((seen[habit], not habit, change))
    return [change for *_, change in sorted(ranked, key=lambda item: item[:2])][:count]
