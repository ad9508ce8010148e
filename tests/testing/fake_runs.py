"""The folder of a run that never ran: every file that the report reads, with plausible numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlr1_jax import config
from sqlr1_jax.config import Config
from sqlr1_jax.sql.outcome import OutcomeKind

# family: habit, SQL with a gap, and what the habit adds to the gap (extra_column) or leaves out (dropped_distinct).
FAMILIES = {
    "superlative": ("extra_column", "SELECT breed{} FROM dogs ORDER BY age DESC LIMIT 1", ", age"),
    "nested_average": ("extra_column", "SELECT city{} FROM owners WHERE pay > ( SELECT avg(pay) FROM owners)", ", pay"),
    "distinct": ("dropped_distinct", "SELECT{} color FROM dogs", " DISTINCT"),
    "count_distinct": ("dropped_distinct", "SELECT count({} color ) FROM dogs", " DISTINCT"),
    "filter": ("", "SELECT name FROM dogs WHERE color = 'red'", ""),
    "join_count": ("", "SELECT count( * ) FROM dogs JOIN owners ON keeper = tag WHERE city = 'rome'", ""),
    "having": ("", "SELECT color FROM dogs GROUP BY color HAVING count( * ) > 2", ""),
}  # fmt: skip
COMPLEXITIES = ("Simple", "Moderate", "Complex", "Highly Complex")


@dataclasses.dataclass(frozen=True)
class FakeRun:
    """Writes the files of a run; each method writes those of one stage and returns the run, to be chained."""

    workdir: Path
    config: Config

    def settings(self) -> FakeRun:
        """Writes config.json."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._json("config.json", config.as_dict(self.config))
        return self

    def sft(self, steps: int = 90) -> FakeRun:
        """Appends the cold start's steps to metrics.jsonl, with a loss that falls."""
        for step in range(1, steps + 1):
            loss = 5 * math.exp(-step / 20) + 0.2
            values = {"loss": loss, "entropy": loss * 0.9, "grad_norm": loss * 1.2, "lr": 6e-3 * (1 - step / steps)}
            times = {"time/pack": 0.01, "time/update": 0.09, "time/step": 0.11}
            self._metric("sft", step, **values, **times)
        return self

    def grpo(self, steps: int = 60) -> FakeRun:
        """Appends GRPO's steps to metrics.jsonl, with an accuracy that rises, and writes two steps' rollouts."""
        noise = random.Random(0)
        for step in range(1, steps + 1):
            self._metric("grpo", step, **_grpo_metrics(step, step / steps, noise))
        for step in (1, steps):
            (self.workdir / "rollouts").mkdir(exist_ok=True)
            lines = [json.dumps(_rollout(step, p)) + "\n" for p in range(4)]
            (self.workdir / "rollouts" / f"step_{step:06d}.jsonl").write_text("".join(lines))
        return self

    def evaluation(self, name: str, cured: bool, n: int = 210) -> FakeRun:
        """Four of five answers have the teacher's habit, or one of ten if `cured`."""
        folder = self.workdir / "evaluation" / name
        folder.mkdir(parents=True, exist_ok=True)
        items = [_item(i, cured, random.Random(1000 * cured + i)) for i in range(n)]
        (folder / "greedy.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        self._json(f"evaluation/{name}/greedy.json", {"heldout": _report(items)})
        ex = sum(item["outcome"] == "match" for item in items) / n
        figures = {"ex_greedy": ex, "ex_vote8": ex + 0.01, "pass8": ex + 0.1, "well_formed": 0.998, "n": n}
        self._json(f"evaluation/{name}/figures.json", {"heldout": figures, "newnames": figures | {"n": 50}})
        return self

    def summary(self) -> FakeRun:
        """Writes summary.json."""
        seconds = {"data": 14.0, "sft": 260.0, "grpo": 300.0, "evaluate": 25.0, "export": 2.0, "total": 601.0}
        self._json("summary.json", {"seconds": seconds, "export": str(self.workdir / "export")})
        return self

    def whole(self) -> FakeRun:
        """Writes all of it."""
        run = self.settings().sft().evaluation("sft", cured=False).grpo()
        return run.evaluation("final", cured=True).summary()

    def _metric(self, stage: str, step: int, **values: float) -> None:
        with (self.workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")

    def _json(self, name: str, value: Any) -> None:
        (self.workdir / name).write_text(json.dumps(value))


def small_config() -> config.Config:
    """The default settings with few steps, and a subset no larger than the fake evaluations."""
    return dataclasses.replace(
        config.Config(),
        sft=dataclasses.replace(config.SftConfig(), steps=90),
        grpo=dataclasses.replace(config.GrpoConfig(), steps=60),
        evaluate=dataclasses.replace(config.EvaluateConfig(), subset=100),
    )


def _grpo_metrics(step: int, progress: float, noise: random.Random) -> dict[str, float]:
    def noisy(value: float, spread: float = 0.04) -> float:
        return max(0.0, value + noise.gauss(0, spread))

    right = min(0.9, noisy(0.45 + 0.35 * progress))
    fails = min(0.05, noisy(0.03, 0.01))
    values = {f"outcome/{kind}": 0.0 for kind in OutcomeKind}
    values |= {"outcome/match": right, "outcome/syntax_error": fails, "outcome/mismatch": 1 - right - fails}
    mixed = min(0.6, noisy(0.5 - 0.2 * progress))
    solved = min(1 - mixed, right * 0.5)
    values |= {"groups/mixed": mixed, "groups/all_right": solved, "groups/all_wrong": 1 - mixed - solved}
    parts = {"format": 0.97, "execution": 1.8, "result": 6 * right - 3, "length": right * 0.5}
    values |= {f"reward/{name}": value for name, value in parts.items()} | {"reward/mean": sum(parts.values())}
    values |= {
        "kl": noisy(0.03 * progress, 0.002), "entropy": noisy(0.3 - 0.2 * progress, 0.01), "logprob_mismatch": 1.0002,
        "clip_fraction": noisy(0.01, 0.002), "completion/mean_tokens": 55.0, "completion/max_tokens": 101.0,
        "completion/truncated": 0.002, "grad_norm": noisy(0.6, 0.1), "lr": 3e-4, "tokens_per_second": noisy(6000, 200),
        "time/rollout": 1.1, "time/pack": 0.02, "time/reward_wait": 0.05, "time/update": 0.8, "time/step": 2.1,
    }  # fmt: skip
    return values | ({"evaluate/ex": 0.5 + 0.25 * progress, "time/evaluate": 1.5} if step % 20 == 0 else {})


def _item(i: int, cured: bool, noise: random.Random) -> dict[str, Any]:
    family = list(FAMILIES)[i % len(FAMILIES)]
    habit, template, change = FAMILIES[family]
    spoiled = bool(habit) and noise.random() < (0.1 if cured else 0.8)
    gold = template.format(change if habit == "dropped_distinct" else "")
    sql = template.format("" if spoiled == (habit == "dropped_distinct") else change) if habit else gold
    fails = noise.random() < 0.2
    return {
        "id": f"heldout-{i:06d}", "set": "heldout", "db_id": f"heldout_{i // 10:05d}", "family": family, "habit": habit,
        "question": f"Question {i} about <dogs> & owners?", "gold": gold, "style": ("Vague", "Formal")[i % 2],
        "complexity": COMPLEXITIES[i % 4], "text": _text(sql), "sql": sql.replace("dogs", "cats") if fails else sql,
        "outcome": "syntax_error" if fails else "mismatch" if spoiled else "match",
    }  # fmt: skip


def _report(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def by(field: str) -> dict[str, dict[str, float]]:
        groups: dict[str, list[bool]] = {}
        for item in items:
            groups.setdefault(item[field], []).append(item["outcome"] == "match")
        return {name: {"n": len(flags), "ex": sum(flags) / len(flags)} for name, flags in groups.items()}

    kinds = [item["outcome"] for item in items]
    fields = ("family", "habit", "complexity", "style")
    outcomes = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    return {f"by_{field}": by(field) for field in fields} | {"outcomes": outcomes}


def _rollout(step: int, p: int) -> dict[str, Any]:
    gold = "SELECT breed FROM dogs ORDER BY age DESC LIMIT 1"
    parts = {"format": 1.0, "execution": 2.0, "result": 3.0, "length": 0.61}
    wrong = gold.replace("breed", "breed, age")
    unreadable = dict.fromkeys(parts, 0.0) | {"format": -1.0}
    samples = [
        _sample(gold, "match", [["terrier"]], parts, 1.2),
        _sample(wrong, "mismatch", [["terrier", 14]], parts | {"result": -3.0, "length": 0.0}, -0.4),
        _sample("SELECT", "syntax_error", [], parts | {"execution": -2.0, "result": 0.0, "length": 0.0}, -0.9)
        | {"message": "incomplete input"},
        _sample(None, "bad_format", [], unreadable, -1.1) | {"text": "<think> lost"},
    ]
    question = f"Which breed is the oldest, at step {step}, question {p}?"
    return {"id": f"grpo-{p}", "db_id": f"grpo_{p:05d}", "question": question, "gold": gold, "gold_rows": [["terrier"]],
            "samples": samples[: 4 - p % 2]}  # fmt: skip


def _sample(
    sql: str | None, outcome: str, rows: list[list[Any]], parts: dict[str, float], advantage: float
) -> dict[str, Any]:
    return {"text": _text(sql or ""), "sql": sql, "outcome": outcome, "message": "", "rows": rows, "reward": parts,
            "advantage": advantage}  # fmt: skip


def _text(sql: str) -> str:
    return f"<think>\nshow breed in dogs; sort age desc\n</think>\n<answer>\n```sql\n{sql}\n```\n</answer>"
