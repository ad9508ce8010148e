"""Rollouts on disk: rollouts/step_000012.jsonl has one line per prompt of step 12, with all its samples.

With `grpo.refill`, the prompts of all the step's rounds are in it; a group that was not trained on has advantages of 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sqlr1_jax.config import RewardConfig
from sqlr1_jax.distributed import collectives
from sqlr1_jax.rl import reward
from sqlr1_jax.rl.scoring import Round


def path(workdir: Path, step: int) -> Path:
    """The file of a step's rollouts; steps count from 1 here, as in metrics.jsonl."""
    return workdir / "rollouts" / f"step_{step:06d}.jsonl"


def write(
    workdir: Path,
    step: int,
    rounds: Sequence[Round],
    adv_NG: np.ndarray,
    reward_config: RewardConfig,
) -> None:
    """Writes the rollouts of all processes in one file, by round and then by position in its batch.

    Each process passes its own rounds and the advantages of the step's N groups on all processes; the primary writes.
    """
    adv_by_round = np.split(adv_NG, len(rounds))
    local = [_lines(round_, adv_PG, reward_config) for round_, adv_PG in zip(rounds, adv_by_round, strict=True)]
    by_round = zip(*collectives.allgather_objects(local), strict=True)
    if collectives.is_primary():
        file = path(workdir, step)
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(line for processes in by_round for lines in processes for line in lines))


def _lines(round_: Round, adv_PG: np.ndarray, reward_config: RewardConfig) -> list[str]:
    """One line for each of this process's prompts; `adv_PG` has those of all processes."""
    lines, part_names = [], reward.part_names(reward_config)
    adv_PG = adv_PG[collectives.local_slice(len(adv_PG))]
    for p, (example, outcomes) in enumerate(zip(round_.examples, round_.outcomes, strict=True)):
        samples = [
            {
                "text": round_.execution.texts[p][g],
                "sql": round_.execution.answers[p][g].sql,
                "outcome": outcome.kind,
                "message": outcome.message,
                "rows": outcome.rows,
                "reward": dict(zip(part_names, map(float, round_.rewards.rewards_PGR[p, g]), strict=True)),
                "advantage": float(adv_PG[p, g]),
            }
            for g, outcome in enumerate(outcomes)
        ]
        gold_rows = next((outcome.gold_rows for outcome in outcomes if outcome.gold_rows), ())
        head = {"id": example.id, "db_id": example.db_id, "question": example.question, "gold": example.sql}
        lines.append(json.dumps(head | {"gold_rows": gold_rows, "samples": samples}, default=str) + "\n")
    return lines


def truncate(workdir: Path, step: int) -> None:
    """Removes the rollouts of steps after `step`; a run that resumes there writes them again."""
    for file in (workdir / "rollouts").glob("step_*.jsonl"):
        if collectives.is_primary() and int(file.stem.removeprefix("step_")) > step:
            file.unlink()
