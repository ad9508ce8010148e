"""What the documents name exists: links, files, settings and tests."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sqlr1_jax import config

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/*.md")]
TEST_FILES = (ROOT / "tests").rglob("*_test.py")
TESTS = {name for path in TEST_FILES for name in re.findall(r"def (test_\w+)", path.read_text())}

GROUPS = "|".join(field.name for field in dataclasses.fields(config.Config))
SETTING = re.compile(rf"`(?:config\.)?((?:{GROUPS})(?:\.(?:[a-z]\w*|\{{[\w,]+\}}))+)(?=[`=])|--config\.([\w.]*\w)")
FILES = ("json", "jsonl", "py", "safetensors")  # the last part of a file's name


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ +(.+?)\s*$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_links_resolve(document: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        file, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (document.parent / file).resolve() if file else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_tests_that_are_named_exist(document: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", document.read_text()))
    examples = {"test_who_waits_to_submit_hears_of_the_end", "test_blocked_submit_raises_when_the_executor_closes"}
    assert named - TESTS - examples == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_source_files_that_are_named_exist(document: Path) -> None:
    named = {path for path in re.findall(r"`([\w/]+\.py)`", document.read_text()) if "/" in path}
    assert {path for path in named if not any((ROOT / folder / path).exists() for folder in ("", "sqlr1_jax"))} == set()


def _settings(text: str) -> Iterator[str]:
    """Dotted names of settings in a text, one for each choice in braces."""
    for found in SETTING.finditer(text):
        name = found[1] or found[2]
        parts = [part.strip("{}").split(",") for part in name.split(".")]
        module = (ROOT / "sqlr1_jax" / parts[0][0] / parts[1][0]).with_suffix(".py") if len(parts) > 1 else None
        if name != "NAME" and parts[-1][0] not in FILES and not (module and module.exists()):
            yield from map(".".join, itertools.product(*parts))


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=_name)
def test_settings_that_are_named_exist(document: Path) -> None:
    for name in _settings(document.read_text()):
        if name not in ("grpo.reward.brevity",):  # CONTRIBUTING's example
            config.check_path(name)


def test_every_defect_is_listed_with_its_tests() -> None:
    listed = set(re.findall(r"`(test_defect_\w+)`", (ROOT / "docs" / "method.md").read_text()))
    numbers = {int(number) for name in listed for number in re.findall(r"_(\d\d)(?=_)", name)}
    assert numbers == set(range(1, 14))
    assert {name for name in TESTS if name.startswith("test_defect_")} == listed


def test_the_config_reference_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    reference = importlib.import_module("config_reference")
    assert reference.PAGE.read_text(encoding="utf-8") == reference.render(), "run python docs/config_reference.py"


def test_every_setting_has_a_meaning_in_the_config_reference() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `.*` \| (.*) \|$", (ROOT / "docs" / "config.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {name for name, _ in config.leaves(config.as_dict(config.Config()))}
    assert all(meaning.strip() for _, meaning in rows)
