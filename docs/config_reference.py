"""python docs/config_reference.py: writes docs/config.md from the dataclasses and comments of sqlr1_jax/config.py."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from pathlib import Path

from sqlr1_jax import config, config_checks, resume

PAGE = Path(__file__).with_name("config.md")
INTRODUCTION = """# Settings

Generated from `sqlr1_jax/config.py` by `python docs/config_reference.py`; a test holds it current.

Each setting is a flag, `--config.NAME=VALUE`, as in `--config.grpo.steps=200`. Defaults are those of
`sqlr1_jax/config.py`; `configs/*.py` and the presets by size (`sqlr1_jax/presets.py`) change some of them. A setting
marked *free* may change when a run resumes. A misspelled setting, an old name and a value that cannot work are errors
that say what to write.
"""


def field_comments(group: type) -> dict[str, str]:
    """The comment of each field: the lines directly above it, then the one behind it."""
    comments: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(group).splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            above.append(stripped.lstrip("# "))
        elif field := re.match(r"(\w+): .*? = .*?(?:  # (.*))?$", stripped):
            comments[field[1]] = " ".join([*above, field[2] or ""]).strip()
            above = []
        else:
            above = []
    return comments


def group_table(group: type, path: str) -> str:
    """A Markdown section of one group of settings; its subgroups are sections of their own."""
    comments, types = field_comments(group), typing.get_type_hints(group)
    rows, sections = [], []
    for field in dataclasses.fields(group):
        if dataclasses.is_dataclass(types[field.name]):
            sections.append(group_table(typing.cast(type, types[field.name]), f"{path}{field.name}."))
        else:
            rows.append(row(path + field.name, comments[field.name]))
    title = f"## {path.rstrip('.')}" if path else "## Run"
    table = "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])
    return "\n\n".join([title, inspect.getdoc(group) or "", table, *sections])


def row(path: str, comment: str) -> str:
    """One line of a table."""
    default = config_checks.get(config.Config(), path)
    choices = config_checks.CHOICES.get(path, ())
    listed = f"One of {', '.join(f'`{c}`' if c else 'empty' for c in choices)}" if choices else ""
    if path in config_checks.RANGES:
        listed = capitalize(str(config_checks.RANGES[path]))
    free = "*free*" if path in resume.FREE else "*free up to rounding*" if path in resume.FREE_UP_TO_ROUNDING else ""
    sentence = capitalize(comment).rstrip(".").replace("|", "\\|").replace("<", "&lt;")
    meaning = ". ".join(part for part in (sentence, listed, free) if part)
    return f"| `{path}` | `{default!r}` | {meaning} |"


def capitalize(comment: str) -> str:
    """The comment as a sentence; a literal value at its start (`int8:`, `shared_prefix:`) keeps its spelling."""
    return comment if re.match(r"[\w.]+:", comment) else comment[:1].upper() + comment[1:]


def render() -> str:
    """The page."""
    return f"{INTRODUCTION}\n{group_table(config.Config, '')}\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
