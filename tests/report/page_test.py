from __future__ import annotations

import html.parser
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sqlr1_jax.report import page, results, run_record

VOID = ("meta", "link")


class _Nesting(html.parser.HTMLParser):
    """Fails on tags that do not close in order; collects what would be fetched."""

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


def _checked(workdir: Path) -> str:
    page.write(workdir)
    html = (workdir / "report.html").read_text()
    parser = _Nesting()
    parser.feed(html)
    assert parser.open == []
    assert parser.fetched == ["data:,"]  # no icon is asked for, and nothing else
    assert "url(" not in html
    assert "@import" not in html
    return html


def _words(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page.partition("<main>")[2]).split())


def test_a_complete_run_has_every_section(fake_run: Callable) -> None:
    page = _checked(fake_run().whole().workdir)
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads == [
        "What happened", "Accuracy before and after", "Which answers changed", "GRPO, step by step", "Rollouts",
        "Cold start", "Where the time went", "Settings", "Go on",
    ]  # fmt: skip
    words = _words(page)
    assert "the habit now stands in" in words
    assert "That corrected what the cold start had taught" in words


def test_the_headline_shows_the_runs_figures(fake_run: Callable) -> None:
    workdir = fake_run().whole().workdir
    html = _checked(workdir)
    gain = results.headline(run_record.read_run(workdir))
    assert gain is not None and gain.after is not None and gain.interval is not None
    assert f'<span class="old">{100 * (gain.before or 0):.1f}</span>' in html
    assert f"{100 * gain.after:.1f}<small>%</small>" in html
    assert f"{page.points(gain.difference)} points" in html
    assert f"95 % interval {page.points(gain.interval[0])} to {page.points(gain.interval[1])}" in _words(html)


@pytest.mark.parametrize("stage", range(7))
def test_the_report_renders_at_every_stage_of_a_run(fake_run: Callable, stage: int) -> None:
    run = fake_run().settings()
    parts: list[Callable] = [
        lambda: run.sft(1), lambda: run.sft(60), lambda: run.evaluation("sft", cured=False),
        lambda: run.grpo(1), lambda: run.grpo(45), lambda: run.evaluation("final", cured=True),
    ]  # fmt: skip
    for part in parts[:stage]:
        part()
    page = _checked(run.workdir)
    assert ("Nothing was evaluated yet" in page) == (stage < 3)
    assert ("GRPO has not been evaluated yet" in page) == (3 <= stage < 6)
    assert ("GRPO, step by step" in page) == (stage >= 4)


def test_a_run_with_only_an_evaluation_renders(fake_run: Callable) -> None:
    page = _checked(fake_run(stages=("evaluate",)).settings().evaluation("final", cured=True).workdir)
    assert "databases that training never saw ." not in _words(page)
    assert "after the cold start" not in _words(page)


def test_other_data_are_named(fake_run: Callable) -> None:
    run = fake_run().settings()
    text = (run.workdir / "config.json").read_text()
    (run.workdir / "config.json").write_text(text.replace('"synth:"', '"spider:/data/spider"'))
    words = _words(_checked(run.evaluation("final", cured=True).workdir))
    assert "Execution accuracy on 210 held-out questions, spider:/data/spider." in words
    assert "never saw" not in words


def test_text_of_the_run_is_escaped(fake_run: Callable) -> None:
    run = fake_run().whole()
    rollouts = run.workdir / "rollouts" / "step_000060.jsonl"
    rollouts.write_text(rollouts.read_text().replace("terrier", "<script>alert(1)</script>"))
    page = _checked(run.workdir)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "about &lt;dogs&gt; &amp; owners?" in page


def test_the_story_says_if_the_teacher_made_no_errors(fake_run: Callable) -> None:
    run = fake_run().whole()
    text = (run.workdir / "config.json").read_text()
    (run.workdir / "config.json").write_text(text.replace('"teacher_errors": 0.75', '"teacher_errors": 0.0'))
    words = _words(_checked(run.workdir))
    assert "by a teacher who made no errors in this run" in words
    assert "That corrected" not in words


def test_a_run_too_short_to_learn_says_so(fake_run: Callable) -> None:
    run = fake_run().whole()
    for name in ("sft", "final"):
        lines = run.workdir / "evaluation" / name / "greedy.jsonl"
        lines.write_text(lines.read_text().replace('"outcome": "match"', '"outcome": "mismatch"'))
    words = _words(_checked(run.workdir))
    assert "That is too little learned for the story to show: run more steps." in words
    assert "And so it did" not in words


def test_settings_that_differ_are_marked() -> None:
    groups = dict(page.settings({"seed": 3, "stages": ["data"], "grpo": {"steps": 1000, "sampling": {"top_p": 0.9}}}))
    assert groups["run"] == [("seed", "3", True), ("stages", "data", True)]
    assert groups["grpo"] == [("steps", "1000", False)]
    assert groups["grpo.sampling"] == [("top_p", "0.9", True)]


@pytest.mark.parametrize(
    ("difference", "interval", "text", "colour"),
    [
        (0.1, (0.05, 0.2), "+10.0", "better"),
        (-0.1, (-0.2, -0.05), "−10.0", "worse"),
        (0.1, (-0.1, 0.2), "+10.0", ""),
        (0.1, None, "+10.0", "better"),
        (0.0, None, "0.0", ""),
        (-0.0001, None, "0.0", ""),
    ],
)
def test_a_change_has_a_colour_where_it_is_one(
    difference: float, interval: tuple[float, float] | None, text: str, colour: str
) -> None:
    gain = results.Gain("", 10, 0.5, 0.5 + difference, interval)
    assert page.points(gain.difference) == text
    assert page.direction(gain) == colour


def test_the_report_needs_no_jax(fake_run: Callable) -> None:
    workdir = fake_run().whole().workdir
    code = "import sys; sys.modules['jax'] = None; from sqlr1_jax.report.__main__ import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, f"--workdir={workdir}"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(workdir / "report.html")), done.stderr
