"""Which of a run's numbers are drawn, and how to read each."""

from __future__ import annotations

from collections.abc import Iterator

from sqlr1_jax.report import charts
from sqlr1_jax.report.charts import Chart
from sqlr1_jax.report.run_record import RunRecord
from sqlr1_jax.sql.outcome import OutcomeKind

OUTCOMES: dict[str, str] = {
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
GROUPS = {"all right": "right", "mixed": "mixed", "all wrong": "wrong"}
PARTS = ("result", "execution", "format", "length", "arctic", "overlap", "schema_recall")
TONES = ("one", "two", "three", "four", "five", "six", "seven")
MISMATCH = {"float32": 1.005, "bfloat16": 1.02}  # docs/design.md: the trainer and the sampler agree


def grpo(record: RunRecord) -> list[Chart]:
    """GRPO's charts, those that have anything to show."""
    return [chart for chart in _grpo(record) if chart]


def sft(record: RunRecord) -> list[Chart]:
    """The cold start's charts."""
    return [chart for chart in _sft(record) if chart]


def _grpo(record: RunRecord) -> Iterator[Chart | None]:
    yield _watched(record)
    yield _one(record, "reward/mean", "Reward", "Mean over all samples of a step.")
    yield charts.lines(
        "Reward by part", {name: record.steps("grpo", f"reward/{name}") for name in PARTS}, TONES,
        "Result: the right rows. Execution: SQL that runs. Format: the answer's form. Length: brevity.",
    )  # fmt: skip
    yield charts.areas(
        "Groups", {name: record.steps("grpo", f"groups/{name.replace(' ', '_')}") for name in GROUPS}, GROUPS,
        "A group is one question's samples. Only mixed groups teach: in the others every advantage is zero.",
    )  # fmt: skip
    yield charts.areas(
        "Outcomes of the samples", {name: record.steps("grpo", f"outcome/{name}") for name in OUTCOMES}, OUTCOMES,
        "What running each sample's SQL gave.",
    )  # fmt: skip
    yield from _health(record)


def _watched(record: RunRecord) -> Chart | None:
    points = record.steps("grpo", "evaluate/ex")
    first = record.watched()
    if points and first is not None:
        points = [(0, first), *points]
    size, best = record.setting("evaluate.subset", 0), max((v for _, v in points if v is not None), default=None)
    hint = f"Greedy, on a fixed subset of {size} held-out questions. Best: {charts.number(best, True)}."
    return charts.lines("Accuracy while training", {"execution accuracy": points}, TONES, hint, percent=True)


def _health(record: RunRecord) -> Iterator[Chart | None]:
    dtype = str(record.setting("model.dtype", "float32"))
    limit = MISMATCH.get(dtype, max(MISMATCH.values()))
    yield _one(record, "kl", "KL to the cold start", "k3 estimate, in nats a token.", zero=True)
    yield _one(record, "entropy", "Entropy",
               "Nats a token. Near zero, all samples say the same and nothing is learned.", zero=True)  # fmt: skip
    yield charts.lines(
        "Trainer against sampler", {"mean exp|Δ log p|": record.steps("grpo", "logprob_mismatch")}, TONES,
        f"1 when both compute the same model. Past {limit} in {dtype}, look for a bug.", limits={"limit": limit},
    )  # fmt: skip
    yield _tokens(record)
    yield _one(record, "completion/truncated", "Cut off", "Samples at the length limit.", percent=True, zero=True)
    yield _one(record, "clip_fraction", "Clipped", "Tokens whose ratio the clip held back.", percent=True, zero=True)
    yield _one(record, "grad_norm", "Gradient norm", "Before clipping.", zero=True)
    yield _rate(record, "grpo")
    yield _one(record, "tokens_per_second", "Speed", "Completion tokens a second, over whole steps.", zero=True)


def _tokens(record: RunRecord) -> Chart | None:
    names = {"mean": "completion/mean_tokens", "longest": "completion/max_tokens"}
    named = {label: record.steps("grpo", name) for label, name in names.items()}
    limit = float(record.setting("grpo.sampling.max_tokens", 0))
    near = max((value for _, value in named["longest"] if value is not None), default=0.0) > limit / 2
    return charts.lines("Tokens of a completion", named, TONES, f"The limit is {limit:,.0f}.", zero=True,
                        limits={"limit": limit} if near else {})  # fmt: skip


def _one(
    record: RunRecord, name: str, title: str, hint: str = "", percent: bool = False, zero: bool = False
) -> Chart | None:
    label = name.rpartition("/")[2].replace("_", " ")
    return charts.lines(title, {label: record.steps("grpo", name)}, TONES, hint, percent, zero)


def _sft(record: RunRecord) -> Iterator[Chart | None]:
    yield charts.lines(
        "Loss", {"loss": record.steps("sft", "loss")}, TONES, "Nats a token, on the answers alone.", zero=True
    )
    yield charts.lines("Entropy", {"entropy": record.steps("sft", "entropy")}, TONES, "Nats a token.", zero=True)
    yield charts.lines("Gradient norm", {"grad norm": record.steps("sft", "grad_norm")}, TONES, "", zero=True)
    yield _rate(record, "sft")


def _rate(record: RunRecord, stage: str) -> Chart | None:
    return charts.lines("Learning rate", {"lr": record.steps(stage, "lr")}, TONES, zero=True, smoothed=False)
