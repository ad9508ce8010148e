from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

from sqlr1_jax.sql.outcome import Outcome, OutcomeKind

NAMES = [
    "match", "match_empty", "mismatch", "syntax_error", "runtime_error", "timeout", "too_large", "denied", "gold_error",
    "no_sql", "bad_format", "ok",
]  # fmt: skip


def test_codes_are_those_of_arrays_already_written() -> None:
    assert list(OutcomeKind) == NAMES
    assert [kind.code for kind in OutcomeKind] == list(range(12))


@pytest.mark.parametrize("kind", OutcomeKind)
def test_a_kind_is_written_as_its_name_everywhere(kind: OutcomeKind) -> None:
    name = kind.value
    assert json.dumps([kind, {kind: 1}]) == json.dumps([name, {name: 1}])
    assert json.dumps({kind: kind}, indent=1, sort_keys=True) == json.dumps({name: name}, indent=1, sort_keys=True)
    assert (str(kind), f"{kind}", f"{kind:>14}", "%s" % kind) == (name, name, f"{name:>14}", name)  # noqa: UP031
    assert {name: 1}[kind] == {kind: 1}[name] == 1  # type: ignore[index]
    assert pickle.loads(pickle.dumps(kind)) is kind


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("complete", {"match", "match_empty", "mismatch", "ok"}),
        ("ran", {"match", "match_empty", "mismatch", "too_large", "ok"}),
        ("correct", {"match", "match_empty"}),
        ("well_formed", set(NAMES) - {"no_sql", "bad_format"}),
    ],
)
def test_which_kinds_belong_to_each_group(group: str, names: set[str]) -> None:
    assert {kind for kind in OutcomeKind if getattr(kind, group)} == names


def test_an_outcome_is_read_back_from_json() -> None:
    outcome = Outcome(
        OutcomeKind.MATCH, rows=((1, None), (2, "x")), columns=("a", "b"), row_count=2, gold_rows=((1, None), (2, "x")),
        score=1.0, times=((0.5, 0.25),),
    )  # fmt: skip
    assert Outcome.from_json(json.loads(json.dumps(dataclasses.asdict(outcome)))) == outcome


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'miss' is not a valid OutcomeKind"):
        Outcome.from_json(dataclasses.asdict(Outcome(OutcomeKind.OK)) | {"kind": "miss"})
