from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sqlr1_jax import stage

FILES = {"a.txt": b"one", "deep/er/b.bin": bytes(range(256)) * 50, "empty": b"", "deep/größe ü.txt": b"\n"}


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _read(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != stage.MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = _write(tmp_path / "source", FILES)
    stage.write_manifest(folder)
    return folder


def test_a_manifest_lists_every_file_with_its_hash(source: Path) -> None:
    lines = [json.loads(line) for line in (source / stage.MANIFEST).read_text().splitlines()]
    assert lines == [
        {"path": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(FILES.items())
    ]
    assert stage.write_manifest(source) == stage.read_manifest(source)  # it does not list itself


def test_a_target_gets_every_file_once(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert stage.stage(source, target) == len(FILES)
    assert _read(target) == FILES
    assert (target / stage.MANIFEST).read_bytes() == (source / stage.MANIFEST).read_bytes()
    assert stage.stage(source, target) == 0


def test_a_damaged_or_missing_file_of_the_target_is_copied_again(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    stage.stage(source, target)
    (target / "a.txt").write_bytes(b"two")  # the same size
    (target / "empty").unlink()
    assert stage.stage(source, target) == 2
    assert _read(target) == FILES


def test_a_link_in_the_source_is_copied_as_the_file(source: Path, tmp_path: Path) -> None:
    (source / "link.txt").symlink_to(source / "a.txt")
    stage.write_manifest(source)
    stage.stage(source, tmp_path / "target")
    assert not (tmp_path / "target/link.txt").is_symlink()
    assert (tmp_path / "target/link.txt").read_bytes() == b"one"


def test_what_the_source_lacks_is_named_before_anything_is_copied(source: Path, tmp_path: Path) -> None:
    (source / "empty").unlink()
    (source / "a.txt").write_bytes(b"longer")
    with pytest.raises(stage.StagingError, match=r"a\.txt, empty of .*source: missing, or not of the size"):
        stage.stage(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_corrupt_file_of_the_source_is_named_and_the_others_are_staged(source: Path, tmp_path: Path) -> None:
    (source / "a.txt").write_bytes(b"0ne")
    target = tmp_path / "target"
    with pytest.raises(stage.StagingError, match=r"a\.txt in .*source differs from the manifest"):
        stage.stage(source, target)
    assert _read(target) == {name: content for name, content in FILES.items() if name != "a.txt"}
    with pytest.raises(stage.StagingError, match="is not staged"):
        stage.require_staged(target)
    (source / "a.txt").write_bytes(b"one")
    assert stage.stage(source, target) == 1
    stage.require_staged(target)


def test_training_refuses_a_host_whose_folder_is_not_whole(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(stage.StagingError, match=r"host \S+: .*target is not staged"):
        stage.require_staged(target)
    stage.stage(source, target)
    (target / "deep/er/b.bin").write_bytes(b"cut")
    with pytest.raises(stage.StagingError, match=r"host \S+: deep/er/b\.bin of .*target: missing, or not of the size"):
        stage.require_staged(target)


@pytest.mark.parametrize(
    "line", ['{"path": "../x", "bytes": 1, "sha256": ""}', '{"path": "/x", "bytes": 1, "sha256": ""}', '{"a": 1}', "3"]
)
def test_a_line_that_is_no_file_of_the_folder_is_refused(line: str, source: Path, tmp_path: Path) -> None:
    with (source / stage.MANIFEST).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(stage.StagingError, match=r"manifest\.jsonl, line 5 does not describe a file"):
        stage.stage(source, tmp_path / "target")


def test_a_full_disk_is_said_before_the_first_copy(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(stage.StagingError, match=r"needs .* GB and its disk has"):
        stage.stage(source, tmp_path / "target")
    assert _read(tmp_path / "target") == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["x"], "SOURCE and TARGET"), (["x", "y", "--manifest"], "--manifest SOURCE"), (["x", "y", "--workers=0"], "1")],
)
def test_arguments_that_do_not_fit_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        stage.main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_killed_command_leaves_no_half_file_and_goes_on(tmp_path: Path) -> None:
    source = _write(tmp_path / "source", {f"{i:03}/db.sqlite": b"%d" % i * 20_000 for i in range(1000)})
    target = tmp_path / "target"
    stage.main(["--manifest", str(source)])
    command = [sys.executable, "-m", "sqlr1_jax.stage", str(source), str(target), "--workers=2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(_read(target)) < 50:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    staged = {name: content for name, content in _read(target).items() if not name.endswith(".part")}
    assert len(staged) + 2 >= 50 and not (target / stage.MANIFEST).exists()
    assert all(content == (source / name).read_bytes() for name, content in staged.items())
    assert stage.stage(source, target) == 1000 - len(staged)
    assert _read(target) == _read(source)
