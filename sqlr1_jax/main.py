"""Runs a config's stages or resumes a run: python -m sqlr1_jax.main --config=configs/grpo.py --workdir=runs/first.

The stages are the methods of `pipeline.Pipeline`. GRPO's step is `train_step` in rl/grpo.py.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import time
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from sqlr1_jax import compile_cache, malloc, run_lock
from sqlr1_jax.config import Config, as_dict, check_path, differences, freeze, leaves, load
from sqlr1_jax.config_checks import RENAMED
from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import ConfigError, exit_on_error
from sqlr1_jax.io import user_path, write_json
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
    """
    with contextlib.ExitStack() as stack:
        collectives.run_on_primary(lambda: stack.enter_context(run_lock.hold(workdir)))
        collectives.run_on_primary(claim, config, workdir)
        with collectives.sync_errors():
            if not (workdir / "config.json").exists():
                raise ConfigError(f"{workdir} is not the first host's folder: all hosts must share one --workdir.")
        from sqlr1_jax.pipeline import Pipeline  # imports JAX, after the folder and its settings were checked

        pipeline = stack.enter_context(Pipeline(config, workdir))
        for stage in config.stages:
            start = time.perf_counter()
            getattr(pipeline, stage)()
            pipeline.summarize(stage, time.perf_counter() - start)


def claim(config: Config, workdir: Path) -> None:
    """Writes config.json, or compares it with the settings of the run that is already in the folder.

    A run that has not completed a step keeps nothing of its settings: a value that a stage refused can be corrected.

    Raises:
      ConfigError: that run has other settings, which the message lists, or its config.json is broken.
    """
    path = workdir / "config.json"
    lines = differences(load(path), config) if path.exists() else []
    if lines and not _has_results(workdir):
        log.info("the run in %s has no results yet; its settings change: %s", workdir, "; ".join(lines))
        shutil.rmtree(workdir / "checkpoints", ignore_errors=True)  # initial weights, of the other settings
    elif lines:
        raise ConfigError(
            f"{workdir} holds a run of another config: {'; '.join(lines)}. "
            "Choose another --workdir, or the settings that it was started with."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, as_dict(config))


def _has_results(workdir: Path) -> bool:
    """Whether a stage has left more than generated data, which have their own check, and checkpoints of step 0."""
    steps = {path.name for path in workdir.glob("checkpoints/*/*")}
    return bool(steps - {"0"}) or any(
        (workdir / name).exists() for name in ("metrics.jsonl", "rollouts", "evaluation", "export")
    )


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
        sys.exit(f"error: {reason.strip()}")
    except AttributeError as error:  # as a ConfigDict raises it if a config file reads a group that does not exist
        group = str(error).strip("\"'")
        if group in RENAMED:
            sys.exit(f"error: config.{group} has a new name: set config.{RENAMED[group]}.")
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
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}; settings are --config.NAME=VALUE")
    malloc.tune_malloc()
    workdir = user_path(_WORKDIR.value or "")
    config = freeze(_CONFIG.value)
    if _DISTRIBUTED.value:
        collectives.initialize()
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
