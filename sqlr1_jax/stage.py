"""Copies a run's files to a host's own disk: python -m sqlr1_jax.stage /bucket/spider /local/spider, on each host.

The source has a manifest, which `--manifest` writes once: path, size and SHA-256 of every file. Staging copies what the
target lacks, many files at a time, and compares each with its hash. A command that was stopped goes on when it is given
again. The manifest is copied last, so a target that has one is whole; training with `data.staged` asks for it.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import Sqlr1Error, exit_on_error
from sqlr1_jax.io import read_numbered_jsonl, write_jsonl
from sqlr1_jax.progress import Progress, print_line

MANIFEST = "manifest.jsonl"
_WORKERS = 32  # a mounted bucket answers each open after tens of milliseconds
_BLOCK = 2**22  # bytes read at a time
T = TypeVar("T")
R = TypeVar("R")
_PART = ".part"  # end of the name of a file that is being copied


class StagingError(Sqlr1Error):
    """Files that are missing or differ from the manifest; the message names the host or folder, files and the fix."""


class StagedFile(NamedTuple):
    """A line of a manifest."""

    path: str  # relative to the folder, with slashes
    bytes: int
    sha256: str


def write_manifest(folder: Path, workers: int = _WORKERS) -> list[StagedFile]:
    """Writes <folder>/manifest.jsonl, a line for each file below the folder, by path; links are followed.

    Raises:
      StagingError: there is no such folder, or no file in it.
    """
    paths = sorted(Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names)
    paths = [path for path in paths if path != folder / MANIFEST and path.suffix != _PART]
    if not paths:
        raise StagingError(f"{folder} has no files to list. Name the folder that holds weights, data or databases.")
    with Progress("hashing", len(paths), "file", report=print_line) as progress:

        def describe(path: Path) -> StagedFile:
            file = StagedFile(path.relative_to(folder).as_posix(), path.stat().st_size, _hash(path))
            progress.update()
            return file

        files = _map(describe, paths, workers)
    write_jsonl(folder / MANIFEST, [file._asdict() for file in files], ensure_ascii=False)
    return files


def read_manifest(folder: Path) -> list[StagedFile]:
    """The files that <folder>/manifest.jsonl lists.

    Raises:
      StagingError: there is no manifest, or a line is none or leads out of the folder.
    """
    path, files = folder / MANIFEST, []
    if not path.exists():
        raise StagingError(f"{folder} has no {MANIFEST}. Write it once: python -m sqlr1_jax.stage --manifest {folder}")
    for number, record in read_numbered_jsonl(path):
        try:
            file = StagedFile(**record)
            relative = PurePosixPath(file.path)
            valid = not relative.is_absolute() and ".." not in relative.parts and file.bytes >= 0
        except TypeError:
            valid = False
        if not valid:
            raise StagingError(f"{path}, line {number} does not describe a file in the folder. Write the list again.")
        files.append(file)
    return files


def stage(source: Path, target: Path, workers: int = _WORKERS) -> int:
    """Makes <target> equal to the files of <source>'s manifest; returns how many had to be copied.

    Files of the target that the manifest does not list stay.

    Raises:
      StagingError: files of the source are missing or differ from the manifest, or the disk has no room. Whatever is
        known without reading the files is known before the first is copied.
    """
    files = read_manifest(source)
    _require_sizes(source, files, workers, "Restore them in the source, or write its manifest again.")
    with Progress("comparing", len(files), "file", report=print_line) as progress:
        same = _map(functools.partial(_is_staged, target, progress=progress), files, workers)
    wanted = [file for file, staged in zip(files, same, strict=True) if not staged]
    _require_room(target, wanted)
    with Progress("staging", len(wanted), "file", report=print_line) as progress:
        results = _map(functools.partial(_copy, source, target, progress=progress), wanted, workers)
    damaged = [path for path in results if path]
    if damaged:
        raise StagingError(
            f"{_some(damaged)} in {source} differ{'s' * (len(damaged) == 1)} from the manifest. The other files are "
            "staged. Restore them in the source, or write its manifest again."
        )
    shutil.copyfile(source / MANIFEST, target / (MANIFEST + _PART))
    (target / (MANIFEST + _PART)).replace(target / MANIFEST)
    return len(wanted)


def require_staged(folder: Path) -> None:
    """Checks that every host has the folder, whole by its manifest and equal to the others'. Collective.

    Compares sizes, not hashes, which staging has compared.

    Raises:
      StagingError: on every host; it names the host that lacks something, and what.
    """
    host = socket.gethostname()
    with collectives.sync_errors():
        if not (folder / MANIFEST).exists():
            raise StagingError(
                f"host {host}: {folder} is not staged, or not to the end. Run python -m sqlr1_jax.stage SOURCE "
                f"{folder} there, or remove config.data.staged."
            )
        _require_sizes(folder, read_manifest(folder), _WORKERS, "Stage the folder again.", f"host {host}: ")
    digests = collectives.allgather_objects((host, _hash(folder / MANIFEST)))
    if others := [name for name, digest in digests if digest != digests[0][1]]:
        raise StagingError(
            f"host {others[0]}: {folder} was staged from another manifest than on host {digests[0][0]}. Stage both "
            "from the same source."
        )


def _require_sizes(folder: Path, files: Sequence[StagedFile], workers: int, fix: str, where: str = "") -> None:
    def differs(file: StagedFile) -> bool:
        path = folder / file.path
        return not path.is_file() or path.stat().st_size != file.bytes

    wrong = [file.path for file, bad in zip(files, _map(differs, files, workers), strict=True) if bad]
    if wrong:
        raise StagingError(f"{where}{_some(wrong)} of {folder}: missing, or not of the size in its {MANIFEST}. {fix}")


def _require_room(target: Path, wanted: Sequence[StagedFile]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    needed, free = sum(file.bytes for file in wanted), shutil.disk_usage(target).free
    if needed > free:
        raise StagingError(
            f"{target} needs {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB left. Use a larger disk."
        )


def _is_staged(target: Path, file: StagedFile, progress: Progress) -> bool:
    path = target / file.path
    same = path.is_file() and path.stat().st_size == file.bytes and _hash(path) == file.sha256
    progress.update()
    return same


def _copy(source: Path, target: Path, file: StagedFile, progress: Progress) -> str:
    """Copies a file and compares it on the way; its path if it differs from the manifest, which leaves no copy."""
    path = target / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    part, digest = path.with_name(path.name + _PART), hashlib.sha256()
    with (source / file.path).open("rb") as reader, part.open("wb") as writer:
        while block := reader.read(_BLOCK):
            digest.update(block)
            writer.write(block)
    progress.update()
    if digest.hexdigest() != file.sha256:
        part.unlink()
        return file.path
    part.replace(path)
    return ""


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _map(function: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """The results in order; after an exception, or Ctrl-C, what has not begun is left out."""
    pool = ThreadPoolExecutor(workers)
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(cancel_futures=True)


def _some(paths: Sequence[str]) -> str:
    shown = ", ".join(paths[:3])
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more files"


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> None:
    """The command; `argv` excludes the program's name."""
    parser = argparse.ArgumentParser(
        prog="python -m sqlr1_jax.stage", description="Copies a folder to this host's disk, compared by hash."
    )
    parser.add_argument("source", type=Path, help="folder with weights, data and databases, such as a mounted bucket")
    parser.add_argument("target", type=Path, nargs="?", help="folder on this host's disk")
    parser.add_argument("--manifest", action="store_true", help="write the source's manifest.jsonl; copy nothing")
    parser.add_argument("--workers", type=int, default=_WORKERS, help="files at a time")
    args = parser.parse_args(argv)
    if args.manifest == (args.target is not None):
        parser.error("give SOURCE and TARGET, or --manifest SOURCE")
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    if args.manifest:
        files = write_manifest(args.source, args.workers)
        print(f"{args.source / MANIFEST}: {len(files)} files, {sum(file.bytes for file in files) / 1e9:.2f} GB")
    else:
        copied = stage(args.source, args.target, args.workers)
        print(f"{args.target} is staged: {copied} files copied, {len(read_manifest(args.target)) - copied} were there")


if __name__ == "__main__":
    main()
