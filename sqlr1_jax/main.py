"""Runs a config's stages or resumes a run: python -m sqlr1_jax.main --config=configs/grpo.py --workdir=runs/first.

The stages are the methods of `pipeline.Pipeline`. GRPO's step is `train_step` in rl/grpo.py.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from sqlr1_jax import compile_cache, malloc
from sqlr1_jax.config import Config, as_dict, check_path, differences, freeze
from sqlr1_jax.config_checks import RENAMED
from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import ConfigError, exit_on_error
from sqlr1_jax.io import read_json, write_json

log = logging.getLogger("sqlr1_jax")
_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, as in configs/grpo.py:smoke.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Share the run with processes on other hosts.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; a run that is already in it is resumed.")


def run(config: Config, workdir: Path) -> None:
    """Runs config.stages in `workdir`. A stage does nothing if its work is done, so an interrupted run resumes.

    Raises:
      ConfigError: the folder holds a run with other settings, or a setting cannot work.
    """
    collectives.run_on_primary(claim, config, workdir)
    with collectives.sync_errors():
        if not (workdir / "config.json").exists():
            raise ConfigError(f"{workdir} is not the first host's folder: all hosts must share one --workdir.")
    from sqlr1_jax.pipeline import Pipeline  # imports JAX, after the folder and its settings were checked

    with Pipeline(config, workdir) as pipeline:
        for stage in config.stages:
            start = time.perf_counter()
            getattr(pipeline, stage)()
            pipeline.summarize(stage, time.perf_counter() - start)


def claim(config: Config, workdir: Path) -> None:
    """Writes config.json, or compares it with the settings of the run that is already in the folder.

    Raises:
      ConfigError: that run has other settings; the message lists them.
    """
    path = workdir / "config.json"
    lines = differences(freeze(read_json(path)), config) if path.exists() else []
    if lines:
        raise ConfigError(
            f"{workdir} holds a run of another config: {'; '.join(lines)}. "
            "Choose another --workdir, or the settings that it was started with."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, as_dict(config))


def log_to(workdir: Path) -> None:
    """Sends log lines to the console and to <workdir>/log.txt; on hosts other than the first, only warnings."""
    workdir.mkdir(parents=True, exist_ok=True)
    line = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
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
        rest = flags.FLAGS(argv)
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


@exit_on_error()
def absl_main(argv: list[str]) -> None:
    """Runs the command; `argv` holds the arguments that are not flags."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}; settings are --config.NAME=VALUE")
    malloc.tune_malloc()
    workdir = Path(_WORKDIR.value or "")
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
