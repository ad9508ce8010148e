"""Runs a config's stages or resumes a run: python -m sqlr1_jax.main --config=configs/grpo.py --workdir=runs/first.

The stages are the methods of `pipeline.Pipeline`. GRPO's step is `train_step` in rl/grpo.py.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from sqlr1_jax import compile_cache, malloc, resume, run_lock, stage
from sqlr1_jax.config import Config, as_dict, check_path, freeze
from sqlr1_jax.config_checks import RENAMED
from sqlr1_jax.config_tree import leaves
from sqlr1_jax.distributed import collectives, watchdog
from sqlr1_jax.errors import ConfigError, exit_on_error
from sqlr1_jax.io import user_path
from sqlr1_jax.terminal import PrintableFormatter

log = logging.getLogger("sqlr1_jax")
_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, as in configs/grpo.py:smoke.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Share the run with processes on other hosts.")
_TUPLES = {f"config.{path}" for path, value in leaves(as_dict(Config())) if isinstance(value, tuple)}
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; a run that is already in it is resumed.")


def run(config: Config, workdir: Path) -> None:
    """Runs config.stages in `workdir`. A stage does nothing if its work is done, so an interrupted run resumes.

    Raises:
      ConfigError: the folder holds a run with other settings, or a setting cannot work.
      LockedError: another process works in the folder.
      StagingError: config.data.staged is not whole on a host.
    """
    with contextlib.ExitStack() as stack:
        collectives.run_on_primary(lambda: stack.enter_context(run_lock.hold(workdir)))
        collectives.run_on_primary(resume.claim, config, workdir)
        with collectives.sync_errors():
            if not (workdir / "config.json").exists():
                raise ConfigError(f"{workdir} is not the first host's folder: all hosts must share one --workdir.")
        if config.data.staged:
            stage.require_staged(user_path(config.data.staged))
        from sqlr1_jax.pipeline import Pipeline  # imports JAX, after the folder and its settings were checked

        pipeline = stack.enter_context(Pipeline(config, workdir))
        for name in config.stages:
            start = time.perf_counter()
            with watchdog.activity(f"stage {name}"):
                getattr(pipeline, name)()
            pipeline.summarize(name, time.perf_counter() - start)


def log_to(workdir: Path) -> None:
    """Sends log lines to the console and to <workdir>/log.txt; on hosts other than the first, only warnings."""
    workdir.mkdir(parents=True, exist_ok=True)
    line = PrintableFormatter("%(asctime)s %(message)s", "%H:%M:%S")
    console, file = logging.StreamHandler(sys.stdout), logging.FileHandler(workdir / "log.txt", delay=True)
    for handler in (console, file) if collectives.is_primary() else (console,):
        handler.setFormatter(line)
        log.addHandler(handler)
    log.setLevel(logging.INFO if collectives.is_primary() else logging.WARNING)
    log.propagate = False
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax logs every file it writes


@exit_on_error()
def parse(argv: list[str]) -> list[str]:
    """Parses the flags with absl. An error ends the process with one line that says what to write instead."""
    try:
        for argument in argv[1:]:
            name = argument.lstrip("-").partition("=")[0]
            if name.startswith("config."):
                check_path(name.removeprefix("config."))
        rest = flags.FLAGS(last_of_repeated(argv))
        freeze(_CONFIG.value)  # reads the config file, which may be missing
        return rest
    except (ConfigError, flags.Error, OSError) as error:
        # If a config file raises or is missing, absl's message is a traceback with the reason in its last line.
        reason = str(error).strip().splitlines()[-1].rpartition("ConfigError: ")[2]
        raise ConfigError(reason.strip()) from error
    except AttributeError as error:  # as a ConfigDict raises it if a config file reads a group that does not exist
        group = str(error).strip("\"'")
        if group in RENAMED:
            raise ConfigError(f"config.{group} has a new name: set config.{RENAMED[group]}.") from error
        raise


def last_of_repeated(argv: list[str]) -> list[str]:
    """The arguments without all but the last value of a setting that takes a tuple.

    absl would join the values: it takes the last value of every other flag.
    """
    last, dropped = dict[str, int](), set[int]()
    for place, argument in enumerate(argv):
        name = argument.lstrip("-").partition("=")[0]
        if not argument.startswith("-") or name not in _TUPLES:
            continue
        if (before := last.get(name)) is not None:
            dropped |= {before} if "=" in argv[before] else {before, before + 1}
        last[name] = place
    return [argument for place, argument in enumerate(argv) if place not in dropped]


@exit_on_error()
def absl_main(argv: list[str]) -> None:
    """Runs the command; `argv` holds the arguments that are not flags."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}; settings are --config.NAME=VALUE", exitcode=2)
    malloc.tune_malloc()
    workdir = user_path(_WORKDIR.value or "")
    config = freeze(_CONFIG.value)
    if _DISTRIBUTED.value:
        collectives.initialize()
        watchdog.start(config.mesh.stuck_minutes)
    with watchdog.ends_together():
        log_to(workdir)
        compile_cache.enable(config.compile_cache)
        run(config, workdir)


def main() -> None:
    """The command, from sys.argv."""
    flags.mark_flags_as_required(["config", "workdir"])
    # absl's --help shows the docstring and flags of __main__, which a console script does not have.
    sys.modules["__main__"].__doc__ = __doc__
    for name in ("config", "distributed", "workdir"):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    app.run(absl_main, flags_parser=parse)


if __name__ == "__main__":
    main()
