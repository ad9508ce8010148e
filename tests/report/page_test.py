from __future__ import annotations

import html.parser
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sqlr1_jax.report import page, results, run_record

VOID = ("meta", "link")


class _Nesting(html.parser.HTMLParser):
    """Fails on tags that are not properly nested; collects the addresses that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _write_page(workdir: Path) -> str:
    page.write(workdir)
    html = (workdir / "report.html").read_text()
    parser = _Nesting()
    parser.feed(html)
    assert parser.open == []
    assert parser.fetched == ["data:,"]  # only the empty icon
    assert "url(" not in html
    assert "@import" not in html
    return html


def _words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html.partition("<main>")[2]).split())


def test_a_complete_run_has_every_section(fake_run: Callable) -> None:
    html = _write_page(fake_run().whole().workdir)
    headings = re.findall(r"<h2>(.*?)</h2>", html)
    assert headings == [
        "What happened", "Accuracy before and after", "Which answers changed", "GRPO, step by step", "Rollouts",
        "Cold start", "Where the time went", "Settings", "Next",
    ]  # fmt: skip
    words = _words(html)
    assert "of the SQL now has them" in words
    assert "GRPO corrected what the cold start had taught" in words


def test_the_headline_has_the_figures_of_the_run(fake_run: Callable) -> None:
    workdir = fake_run().whole().workdir
    html = _write_page(workdir)
    gain = results.headline(run_record.read_run(workdir))
    assert gain is not None
    assert gain.before is not None
    assert gain.interval is not None
    assert f'<span class="old">{100 * gain.before:.1f}</span>' in html
    assert f"{100 * gain.after:.1f}<small>%</small>" in html
    assert f"{page.points(gain.difference)} points" in html
    assert f"95 % interval {page.points(gain.interval[0])} to {page.points(gain.interval[1])}" in _words(html)


@pytest.mark.parametrize("stage", range(7))
def test_a_run_in_progress_has_a_page_at_every_stage(fake_run: Callable, stage: int) -> None:
    run = fake_run().settings()
    parts: list[Callable] = [
        lambda: run.sft(1), lambda: run.sft(60), lambda: run.evaluation("sft", cured=False),
        lambda: run.grpo(1), lambda: run.grpo(45), lambda: run.evaluation("final", cured=True),
    ]  # fmt: skip
    for part in parts[:stage]:
        part()
    html = _write_page(run.workdir)
    assert ("No evaluation yet" in html) == (stage < 3)
    assert ("GRPO has not been evaluated yet" in html) == (3 <= stage < 6)
    assert ("GRPO, step by step" in html) == (stage >= 4)


def test_an_evaluation_without_training_mentions_no_cold_start(fake_run: Callable) -> None:
    html = _write_page(fake_run(stages=("evaluate",)).settings().evaluation("final", cured=True).workdir)
    assert "that are not in the training data ." not in _words(html)
    assert "after the cold start" not in _words(html)


def test_the_source_of_other_data_is_named(fake_run: Callable) -> None:
    run = fake_run().settings()
    text = (run.workdir / "config.json").read_text()
    (run.workdir / "config.json").write_text(text.replace('"synth:"', '"spider:/data/spider"'))
    words = _words(_write_page(run.evaluation("final", cured=True).workdir))
    assert "Execution accuracy on 210 held-out questions, spider:/data/spider." in words
    assert "on databases that are not in the training data" not in words


def test_text_of_the_run_is_escaped(fake_run: Callable) -> None:
    run = fake_run().whole()
    rollouts = run.workdir / "rollouts" / "step_000060.jsonl"
    rollouts.write_text(rollouts.read_text().replace("terrier", "<script>alert(1)</script>"))
    html = _write_page(run.workdir)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "about &lt;dogs&gt; &amp; owners?" in html


def test_the_story_without_teacher_errors_says_so(fake_run: Callable) -> None:
    run = fake_run().whole()
    text = (run.workdir / "config.json").read_text()
    (run.workdir / "config.json").write_text(text.replace('"teacher_errors": 0.75', '"teacher_errors": 0.0'))
    words = _words(_write_page(run.workdir))
    assert "The teacher who wrote them made no errors in this run" in words
    assert "GRPO corrected" not in words


def test_the_story_of_a_run_too_short_says_so(fake_run: Callable) -> None:
    run = fake_run().whole()
    for name in ("sft", "final"):
        lines = run.workdir / "evaluation" / name / "greedy.jsonl"
        lines.write_text(lines.read_text().replace('"outcome": "match"', '"outcome": "mismatch"'))
    words = _words(_write_page(run.workdir))
    assert "The model has learned too little to show this effect: run more steps." in words
    assert "It did learn them" not in words


def test_settings_that_differ_from_the_defaults_are_marked() -> None:
    groups = dict(page.settings({"seed": 3, "stages": ["data"], "grpo": {"steps": 1000, "sampling": {"top_p": 0.9}}}))
    assert groups["run"] == [("seed", "3", True), ("stages", "data", True)]
    assert groups["grpo"] == [("steps", "1000", False)]
    assert groups["grpo.sampling"] == [("top_p", "0.9", True)]


@pytest.mark.parametrize(
    ("difference", "interval", "text", "css_class"),
    [
        (0.1, (0.05, 0.2), "+10.0", "better"),
        (-0.1, (-0.2, -0.05), "−10.0", "worse"),
        (0.1, (-0.1, 0.2), "+10.0", ""),
        (0.1, None, "+10.0", "better"),
        (0.0, None, "0.0", ""),
        (-0.0001, None, "0.0", ""),
    ],
)
def test_a_change_has_a_color_if_its_interval_excludes_zero(
    difference: float, interval: tuple[float, float] | None, text: str, css_class: str
) -> None:
    gain = results.Gain("", 10, 0.5, 0.5 + difference, interval)
    assert page.points(gain.difference) == text
    assert page.direction(gain) == css_class
