"""JAX's compilation cache: programs compiled by an earlier process are read from disk.

A program's key is its code, the compiler's options and version, and the kind of device, so a cached program computes
the same bits as a newly compiled one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from pathlib import Path

log = logging.getLogger(__name__)
AUTO = "auto"  # value of config.compile_cache
_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
# Name of a JAX setting, and its value here unless the environment sets it. Programs that compile in less than half a
# second are not worth a file. -1: files of any size.
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.5,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def default_folder() -> str:
    """$XDG_CACHE_HOME/sqlr1_jax/xla/<processor>, or that below ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return os.path.join(os.path.expanduser(cache), "sqlr1_jax", "xla", _processor())


def enable(folder: str = AUTO) -> Path | None:
    """Makes JAX keep compiled programs in a folder. Call it before the first program is compiled.

    Args:
      folder: `auto` is $JAX_COMPILATION_CACHE_DIR, or `default_folder()` if that is not set; empty: no cache.

    Returns:
      The folder; None if there is no cache. A folder that cannot be written is logged, and is no error.
    """
    if folder == AUTO:
        folder = os.environ.get(_VARIABLE, default_folder())
    path = Path(folder).expanduser() if folder.startswith("~") else Path(folder)
    if folder and not _is_writable(path):
        folder = ""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(path) if folder else None)
    for name, value in _SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    return path if folder else None


def _is_writable(path: Path) -> bool:
    try:
        if not path.is_absolute() and path.parts[0] == "~":
            raise OSError("there is no home folder")
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is in it will be executed
        if not os.access(path, os.W_OK):
            raise PermissionError("no permission to write")
    except OSError as error:
        log.warning("compiled programs are not kept: %s: %s; see config.compile_cache", path, error)
        return False
    return True


def _processor() -> str:
    """A name for the processor's instruction set: a home folder may be shared by machines that differ in it.

    JAX's keys do not contain the instruction set, and a program for another one may crash.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.blake2b(flags.encode(), digest_size=4).hexdigest()}"
