"""python -m sqlr1_jax.main --config=configs/grpo.py --workdir=runs/first: runs the config's stages, or goes on."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from sqlr1_jax import config, malloc
from sqlr1_jax.distributed import collectives
from sqlr1_jax.errors import ConfigError, exit_on_error
from sqlr1_jax.io import atomic_write_text

log = logging.getLogger("sqlr1_jax")
_CONFIG = config_flags.DEFINE_config_file("config", None, "A config file, as in configs/grpo.py:smoke.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "This is one of several hosts that share a run (distributed/collectives.py)."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; a run that is there already goes on.")


def run(cfg: config.Config, workdir: Path) -> None:
    """Runs cfg.stages in the folder; each is idempotent, so a run cut short goes on where it was.

    Raises:
      ConfigError: the folder holds a run of another config, or a setting cannot work.
    """
    collectives.run_on_primary(claim, cfg, workdir)
    with collectives.sync_errors():
        if not (workdir / "config.json").exists():
            raise ConfigError(f"{workdir} is not the first host's: all hosts must share one folder.")
    from sqlr1_jax.pipeline import Pipeline

    with Pipeline(cfg, workdir) as pipeline:
        for name in cfg.stages:
            begin = time.perf_counter()
            getattr(pipeline, name)()
            pipeline.summarize(name, time.perf_counter() - begin)


def claim(cfg: config.Config, workdir: Path) -> None:
    """Writes config.json, or checks the one that is there.

    Raises:
      ConfigError: the run there has other settings; the message lists them.
    """
    path = workdir / "config.json"
    if path.exists():
        there = config.freeze(json.loads(path.read_text()))
        if lines := config.differences(there, cfg):
            raise ConfigError(
                f"{workdir} holds a run of another config: {'; '.join(lines)}. "
                "Choose another --workdir, or the settings that it was started with."
            )
    workdir.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(config.as_dict(cfg), indent=1))


def log_to(workdir: Path) -> None:
    """Sends log lines to the console and to <workdir>/log.txt; of hosts other than the first, warnings alone."""
    workdir.mkdir(parents=True, exist_ok=True)
    line = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    console, file = logging.StreamHandler(sys.stdout), logging.FileHandler(workdir / "log.txt", delay=True)
    for handler in (console, file) if collectives.is_primary() else (console,):
        handler.setFormatter(line)
        log.addHandler(handler)
    log.setLevel(logging.INFO if collectives.is_primary() else logging.WARNING)
    log.propagate = False
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax tells of every file


def parse(argv: list[str]) -> list[str]:
    """The flags, as absl parses them; what cannot be parsed ends the process with one line that says what was meant."""
    try:
        for argument in argv[1:]:
            name = argument.lstrip("-").partition("=")[0]
            if name.startswith("config."):
                config.check_path(name.removeprefix("config."))
        rest = flags.FLAGS(argv)
        config.freeze(_CONFIG.value)  # a config file that is missing says so when it is first looked at
        return rest
    except (ConfigError, flags.Error, OSError) as error:
        # Where a config file raises or is missing, the reason stands in the last line, behind a traceback.
        reason = str(error).strip().splitlines()[-1].rpartition("ConfigError: ")[2]
        sys.exit(f"error: {reason.strip()}")


@exit_on_error()
def main(argv: list[str]) -> None:
    """The command; flags are parsed."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}; settings are --config.NAME=VALUE")
    malloc.tune_malloc()
    workdir = Path(_WORKDIR.value or "")
    cfg = config.freeze(_CONFIG.value)
    if _DISTRIBUTED.value:
        collectives.initialize()
    log_to(workdir)
    run(cfg, workdir)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
