"""Rollouts on disk: rollouts/step_000012.jsonl has one line per prompt of step 12, with all its samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sqlr1_jax.config import RewardConfig
from sqlr1_jax.data.example import Example
from sqlr1_jax.distributed import collectives
from sqlr1_jax.rl import reward
from sqlr1_jax.rl.scoring import CompletionExecutor, Rewards
from sqlr1_jax.sql.outcome import Outcome


def path(workdir: Path, step: int) -> Path:
    """The file of a step's rollouts; steps count from 1 here, as in metrics.jsonl."""
    return workdir / "rollouts" / f"step_{step:06d}.jsonl"


def write(
    workdir: Path,
    step: int,
    examples: Sequence[Example],
    execution: CompletionExecutor,
    outcomes: Sequence[Sequence[Outcome]],
    rewards: Rewards,
    adv_PG: np.ndarray,
    reward_config: RewardConfig,
) -> None:
    """Writes the rollouts of all processes in one file; each process passes its own, and the primary writes."""
    lines, part_names = [], reward.part_names(reward_config)
    for p, example in enumerate(examples):
        samples = [
            {
                "text": execution.texts[p][g],
                "sql": execution.answers[p][g].sql,
                "outcome": outcome.kind,
                "message": outcome.message,
                "rows": outcome.rows,
                "reward": dict(zip(part_names, map(float, rewards.rewards_PGR[p, g]), strict=True)),
                "advantage": float(adv_PG[p, g]),
            }
            for g, outcome in enumerate(outcomes[p])
        ]
        gold_rows = next((outcome.gold_rows for outcome in outcomes[p] if outcome.gold_rows), ())
        head = {"id": example.id, "db_id": example.db_id, "question": example.question, "gold": example.sql}
        lines.append(json.dumps(head | {"gold_rows": gold_rows, "samples": samples}, default=str) + "\n")
    global_lines = collectives.allgather_list(lines)
    if collectives.is_primary():
        file = path(workdir, step)
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(global_lines))


def truncate(workdir: Path, step: int) -> None:
    """Removes the rollouts of steps after `step`; a run that resumes there writes them again."""
    for file in (workdir / "rollouts").glob("step_*.jsonl"):
        if collectives.is_primary() and int(file.stem.removeprefix("step_")) > step:
            file.unlink()
