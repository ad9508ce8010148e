"""The charts of a run: which metrics are drawn, with a hint on how to read each."""

from __future__ import annotations

from collections.abc import Iterator

from sqlr1_jax.report import charts
from sqlr1_jax.report.charts import Chart
from sqlr1_jax.report.run_record import RunRecord
from sqlr1_jax.rl import reward
from sqlr1_jax.sql.outcome import OutcomeKind

# CSS classes of style.css; the order is that of the stacked areas, from the bottom.
OUTCOME_TONES: dict[str, str] = {
    OutcomeKind.MATCH: "right",
    OutcomeKind.MATCH_EMPTY: "right2",
    OutcomeKind.MISMATCH: "wrong",
    OutcomeKind.TOO_LARGE: "wrong2",
    OutcomeKind.TIMEOUT: "slow",
    OutcomeKind.RUNTIME_ERROR: "fails2",
    OutcomeKind.SYNTAX_ERROR: "fails",
    OutcomeKind.DENIED: "denied",
    OutcomeKind.NO_SQL: "none",
    OutcomeKind.BAD_FORMAT: "none2",
    OutcomeKind.GOLD_ERROR: "gold",
    OutcomeKind.OK: "right",
}
GROUP_TONES = {"all right": "right", "mixed": "mixed", "all wrong": "wrong"}
# logprob_mismatch that is expected from rounding alone, by dtype (docs/design.md).
MISMATCH_LIMITS = {"float32": 1.005, "bfloat16": 1.02}


def grpo(record: RunRecord) -> list[Chart]:
    """GRPO's charts, without those that have nothing to show."""
    found = [
        _accuracy(record),
        _grpo_line(record, "reward/mean", "Reward", "Mean over all samples of a step."),
        charts.line_chart(
            "Reward by part",
            {name: record.steps("grpo", f"reward/{name}") for name in reward.PARTS},
            "Format: the answer has the right form. Execution: its SQL runs. Result: it returns the right rows. "
            "Length: the SQL's share of a right answer, plus a bonus for longer reasoning.",
        ),
        charts.area_chart(
            "Groups",
            {name: record.steps("grpo", f"groups/{name.replace(' ', '_')}") for name in GROUP_TONES},
            GROUP_TONES,
            "A group is all samples of one question. Only mixed groups train the model; in the others all advantages "
            "are zero.",
        ),
        charts.area_chart(
            "Outcomes of the samples",
            {name: record.steps("grpo", f"outcome/{name}") for name in OUTCOME_TONES},
            OUTCOME_TONES,
            "What happened when each sample's SQL was run.",
        ),
        *_health_charts(record),
    ]
    return [chart for chart in found if chart]


def sft(record: RunRecord) -> list[Chart]:
    """The cold start's charts, without those that have nothing to show."""
    loss, entropy = record.steps("sft", "loss"), record.steps("sft", "entropy")
    found = [
        charts.line_chart("Loss", {"loss": loss}, "Nats per token of the answers.", zero=True),
        charts.line_chart("Entropy", {"entropy": entropy}, "Nats per token.", zero=True),
        charts.line_chart("Gradient norm", {"grad norm": record.steps("sft", "grad_norm")}, zero=True),
        charts.line_chart("Learning rate", {"lr": record.steps("sft", "lr")}, zero=True, smoothed=False),
    ]
    return [chart for chart in found if chart]


def _accuracy(record: RunRecord) -> Chart | None:
    points = record.steps("grpo", "evaluate/ex")
    at_start = record.sft_subset_accuracy()
    if points and at_start is not None:
        points = [(0, at_start), *points]
    size, best = record.setting("evaluate.subset", 0), max((v for _, v in points if v is not None), default=None)
    hint = f"Greedy, on a fixed subset of {size} held-out questions. Best: {charts.number(best, True)}."
    return charts.line_chart("Accuracy during training", {"execution accuracy": points}, hint, percent=True)


def _health_charts(record: RunRecord) -> Iterator[Chart | None]:
    dtype = str(record.setting("model.dtype", "float32"))
    limit = MISMATCH_LIMITS.get(dtype, max(MISMATCH_LIMITS.values()))
    yield _grpo_line(record, "kl", "KL to the cold start", "k3 estimate, in nats per token.", zero=True)
    yield _grpo_line(
        record, "entropy", "Entropy", "Nats per token. Near zero all samples are alike, and nothing is learned.",
        zero=True,
    )  # fmt: skip
    yield charts.line_chart(
        "Trainer vs. sampler",
        {"mean exp|Δ log p|": record.steps("grpo", "logprob_mismatch")},
        f"1 if trainer and sampler compute the same probabilities. Above {limit} in {dtype}, look for a bug.",
        limits={"limit": limit},
    )
    yield _completion_tokens(record)
    yield _grpo_line(
        record, "completion/truncated", "Truncated", "Samples cut off at the length limit.", percent=True, zero=True
    )
    yield _grpo_line(
        record, "clip_fraction", "Clipped", "Tokens whose gradient the clip stopped.", percent=True, zero=True
    )
    yield _grpo_line(record, "grad_norm", "Gradient norm", "Before clipping.", zero=True)
    yield charts.line_chart("Learning rate", {"lr": record.steps("grpo", "lr")}, zero=True, smoothed=False)
    yield _grpo_line(record, "tokens_per_second", "Speed", "Completion tokens per second, over whole steps.", zero=True)


def _completion_tokens(record: RunRecord) -> Chart | None:
    """Completion lengths; the token limit is drawn only if completions come near it."""
    metrics = {"mean": "completion/mean_tokens", "longest": "completion/max_tokens"}
    series = {label: record.steps("grpo", name) for label, name in metrics.items()}
    limit = float(record.setting("grpo.sampling.max_tokens", 0))
    longest = max((value for _, value in series["longest"] if value is not None), default=0.0)
    limits = {"limit": limit} if longest > limit / 2 else {}
    return charts.line_chart(
        "Completion length", series, f"Tokens. The limit is {limit:,.0f}.", zero=True, limits=limits
    )


def _grpo_line(
    record: RunRecord, metric: str, title: str, hint: str = "", percent: bool = False, zero: bool = False
) -> Chart | None:
    label = metric.rpartition("/")[2].replace("_", " ")
    return charts.line_chart(title, {label: record.steps("grpo", metric)}, hint, percent, zero)
