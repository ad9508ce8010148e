"""What the documents name exists: links, files, settings, tests, modules and commands."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import itertools
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from absl import flags
from ml_collections import config_flags

from sqlr1_jax import config, config_tree

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sqlr1_jax"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/*.md")])
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
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
    bad_examples = {"test_who_waits_to_submit_hears_of_the_end"}
    assert named - TESTS - bad_examples == set()


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
    assert {name for name, _ in rows} == {name for name, _ in config_tree.leaves(config.as_dict(config.Config()))}
    assert all(meaning.strip() for _, meaning in rows)


def _modules() -> dict[str, set[str]]:
    """The modules of each folder of the package, without __init__."""
    folders: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if path.stem != "__init__":
            folder = "" if path.parent == PACKAGE else path.parent.relative_to(PACKAGE).as_posix()
            folders.setdefault(folder, set()).add(path.stem)
    return folders


def test_the_design_page_names_every_module() -> None:
    rows = re.findall(r"^\| `([\w/]+)/` \| (.*) \|$", DESIGN, re.MULTILINE)
    named = {("" if folder == "sqlr1_jax" else folder): set(re.findall(r"`(\w+)`", cell)) for folder, cell in rows}
    extra = {folder: names - _modules()[folder] for folder, names in named.items()}
    missing = {folder: names - named[folder] for folder, names in _modules().items()}
    assert not any(extra.values()), extra
    assert not any(missing.values()), missing


def _imports(path: Path) -> set[str]:
    """Modules that a file imports when it runs, at the top or in a function: not those for type annotations only."""
    tree, names = ast.parse(path.read_text(encoding="utf-8")), set()
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _room(module: str, rooms: set[str]) -> str:
    """The room of the design page's diagram that a module of the package is in."""
    name = module.split(".")[1].removesuffix("_checks").removesuffix("_tree")  # these are parts of config
    return name if name in rooms else "commands"


def _allowed_imports() -> dict[str, set[str]]:
    """For each room of the design page's diagram, the rooms that its arrows reach."""
    diagram = DESIGN.partition("flowchart TD")[2].partition("```")[0]
    edges: dict[str, set[str]] = {}
    for line in diagram.strip().splitlines():
        groups = [re.sub(r"\[.*?\]", "", part).split("&") for part in line.split("-->")]
        for sources, targets in itertools.pairwise(groups):
            for source in sources:
                edges.setdefault(source.strip(), set()).update(target.strip() for target in targets)

    def reach(room: str) -> set[str]:
        return {room}.union(*(reach(target) for target in edges.get(room, ())))

    return {room: reach(room) for room in {*edges, *itertools.chain(*edges.values())}}


def test_imports_point_the_way_of_the_design_page() -> None:
    allowed, wrong = _allowed_imports(), []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for imported in sorted(name for name in _imports(path) if name.startswith("sqlr1_jax.")):
            pair = (module, imported)
            if module == "sqlr1_jax.__init__" or pair == ("sqlr1_jax.config_checks", "sqlr1_jax.data.sources"):
                continue
            if _room(imported, set(allowed)) not in allowed[_room(module, set(allowed))]:
                wrong.append(f"{module} imports {imported}")
    assert wrong == []


@pytest.mark.parametrize("room", ["sql", "data", "synth", "lint"])
def test_rooms_without_jax_never_import_it(room: str) -> None:
    paths = [
        *(PACKAGE / room).rglob("*.py"),
        *(PACKAGE / f"{name}.py" for name in ("config", "config_checks", "config_tree", "io")),
    ]
    importers = [
        _name(path) for path in paths for name in _imports(path) if re.match(r"(jax|flax|optax|orbax)\b", name)
    ]
    assert importers == []


def _commands(text: str) -> list[str]:
    """The commands of a document: lines of bash blocks and of indented blocks, and code within sentences."""
    text = text.replace("\\\n", " ")  # a command that goes on in the next line
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [*"\n".join(blocks).splitlines(), *re.findall(r"^ {4}(.+)$", text, re.MULTILINE)]
    lines += re.findall(r"`([^`\n]+)`", text)
    lines = [f"python -m sqlr1_jax.main {line}" if re.match(r"--config\.\S+=", line) else line for line in lines]
    commands = [part.strip() for line in lines for part in re.split("&&| -- ", line.split("  # ")[0])]
    runs = re.compile(r"python3? (-m sqlr1_jax|benchmarks/|docs/)|sqlr1-\w|launch/\S+ ")
    return [command for command in commands if runs.match(command)]


def _words(command: str) -> list[str]:
    """The arguments of a command, as bash splits them and expands {a,b}."""
    return [expanded for word in shlex.split(command) for expanded in _expand_braces(word.strip("[]"))]


def _expand_braces(word: str) -> list[str]:
    before, brace, rest = word.partition("{")
    choices, _, after = rest.partition("}")
    return [before + choice + after for choice in choices.split(",")] if brace else [word]


@functools.cache
def _flags(path: Path) -> set[str]:
    """Flags that a script defines: through argparse or absl, or in the usage text of a shell script."""
    if path.suffix == ".sh":
        return set(re.findall(r"^  (--[a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    found = {"--help"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function, name = ast.unparse(node.func).rpartition(".")[2], str(node.args[0].value)
            if function in ("add", "add_argument"):
                found.add(name)
            elif function.startswith("DEFINE_"):
                found.add(f"--{name}")
    return found


def _script(words: list[str]) -> Path:
    """The file that a command runs; it need not exist."""
    if words[0].startswith("sqlr1-"):
        module = SCRIPTS.get(words[0], "no.such.script").partition(":")[0]
    elif words[0].startswith("launch/"):
        return ROOT / words[0]
    elif words[1] == "-m":
        module = words[2]
    else:
        return ROOT / words[1]
    path = ROOT.joinpath(*module.split("."))
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def _check_config(words: list[str]) -> None:
    """Loads the config of a command and sets what the command sets.

    Raises:
      ConfigError: a setting does not exist, or does not take the value.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", str(ROOT / "configs" / "grpo.py"), flag_values=values)
    words = [re.sub(r"^--config=(?=configs/)", f"--config={ROOT}/", word) for word in words]
    given = [word for word in words if re.match(r"--config[.=]", word) and not word.startswith("--config=FILE")]
    if not any(word.startswith("--config=") for word in given):
        given.insert(0, f"--config={ROOT}/configs/grpo.py")
    for word in given:
        if word.startswith("--config.") and "NAME" not in word:
            config.check_path(word.removeprefix("--config.").partition("=")[0])
    arguments = ["command", *(word for word in given if "NAME" not in word)]
    with mock.patch.object(sys, "argv", arguments):  # where config_flags finds the settings
        values(arguments)
    config.freeze(values.config)


def test_scripts_that_are_named_exist() -> None:
    named = {name for path in DOCUMENTS for name in re.findall(r"`(sqlr1-[\w-]+)", path.read_text(encoding="utf-8"))}
    assert named <= set(SCRIPTS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_commands_that_are_named_can_be_parsed(document: Path) -> None:
    for command in _commands(document.read_text(encoding="utf-8")):
        words = _words(command)
        script = _script(words)
        assert script.exists(), command
        named = {word.partition("=")[0] for word in words if word.startswith("--")}
        unknown = {flag for flag in named if not flag.startswith("--config.")} - _flags(script)
        assert not unknown, f"{command}: {script.name} has no {unknown}"
        _check_config(words)


def test_commands_are_found_in_blocks_and_in_sentences() -> None:
    text = """
```bash
pip install x && python -m sqlr1_jax.main --config=configs/grpo.py \\
    --workdir=runs/first
```
Or `sqlr1-ask --help`, `--config.grpo.{clip,kl}=0.1` or

    python benchmarks/sql.py --json  # a line of figures
"""
    assert [_words(command) for command in _commands(text)] == [
        ["python", "-m", "sqlr1_jax.main", "--config=configs/grpo.py", "--workdir=runs/first"],
        ["python", "benchmarks/sql.py", "--json"],
        ["sqlr1-ask", "--help"],
        ["python", "-m", "sqlr1_jax.main", "--config.grpo.clip=0.1", "--config.grpo.kl=0.1"],
    ]


@pytest.mark.parametrize(
    "wrong", ["--config.rollout.slots=1", "--config.grpo.clip=wide", "--config=configs/grpo.py:9b"]
)
def test_a_wrong_setting_in_a_command_is_found(wrong: str) -> None:
    with pytest.raises(Exception, match=r"slots|clip|9b"):
        _check_config(["python", "-m", "sqlr1_jax.main", wrong])
