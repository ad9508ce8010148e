"""Rollouts on disk: rollouts/step_000012.jsonl, one line a prompt with all its samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sqlr1_jax.config import RewardConfig
from sqlr1_jax.data.example import Example
from sqlr1_jax.distributed import collectives
from sqlr1_jax.rl import reward
from sqlr1_jax.rl.scoring import CompletionScorer, Rewards
from sqlr1_jax.sql.outcome import Outcome


def path(workdir: Path, step: int) -> Path:
    """Where a step's rollouts are."""
    return workdir / "rollouts" / f"step_{step:06d}.jsonl"


def write(
    workdir: Path,
    step: int,
    examples: Sequence[Example],
    execution: CompletionScorer,
    outcomes: Sequence[Sequence[Outcome]],
    rewards: Rewards,
    adv_PG: np.ndarray,
    reward_config: RewardConfig,
) -> None:
    """Writes a step's completions with their outcomes, the reward of each part and advantages, of all processes."""
    lines, parts = [], reward.names(reward_config)
    for p, example in enumerate(examples):
        samples = [
            {
                "text": text,
                "sql": execution.answers[p][g].sql,
                "outcome": outcomes[p][g].kind,
                "message": outcomes[p][g].message,
                "rows": outcomes[p][g].rows,
                "reward": dict(zip(parts, map(float, rewards.rewards_PGR[p, g]), strict=True)),
                "advantage": float(adv_PG[p, g]),
            }
            for g, text in enumerate(execution.texts[p])
        ]
        gold_rows = next((o.gold_rows for o in outcomes[p] if o.gold_rows), ())
        head = {"id": example.id, "db_id": example.db_id, "question": example.question, "gold": example.sql}
        lines.append(json.dumps(head | {"gold_rows": gold_rows, "samples": samples}, default=str) + "\n")
    every = collectives.allgather_list(lines)
    if collectives.is_primary():
        target = path(workdir, step)
        target.parent.mkdir(exist_ok=True)
        target.write_text("".join(every))


def truncate(workdir: Path, step: int) -> None:
    """Removes the rollouts of steps past `step`, which a resumed run makes again."""
    for file in (workdir / "rollouts").glob("step_*.jsonl"):
        if collectives.is_primary() and int(file.stem.removeprefix("step_")) > step:
            file.unlink()
