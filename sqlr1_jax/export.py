"""Writes a run's weights as a Hugging Face folder: python -m sqlr1_jax.export --checkpoint=runs/first --output=DIR."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sqlr1_jax import compile_cache, config
from sqlr1_jax.errors import ConfigError, exit_on_error
from sqlr1_jax.io import user_path


def export(workdir: Path, output: Path, settings: config.ExportConfig) -> None:
    """Exports a run's weights: the step that `settings` names, of the last stage with checkpoints.

    Raises:
      ConfigError: the folder holds no run, or a setting cannot work.
      CheckpointNotFoundError: there is no such step.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise ConfigError(f"{workdir} holds no run: it has no config.json. --checkpoint= names a run's folder.")
    run_config = dataclasses.replace(config.load(path), export=settings)
    config.check(run_config)
    compile_cache.enable(run_config.compile_cache)
    from sqlr1_jax.pipeline import export_model
    from sqlr1_jax.train.context import create_context

    output.mkdir(parents=True, exist_ok=True)
    export_model(create_context(run_config, workdir), output)


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> None:
    """The command; `argv` excludes the program's name."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("absl").setLevel(logging.WARNING)
    settings = config.ExportConfig(args.step, args.dtype, args.shard_gigabytes, args.form)
    export(args.checkpoint, args.output, settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sqlr1_jax.export", description="Exports a run for Hugging Face.")
    parser.add_argument("--checkpoint", type=user_path, required=True, help="the run's folder")
    parser.add_argument("--output", type=user_path, required=True, help="the folder to write")
    default = config.ExportConfig()
    parser.add_argument("--step", default=default.step, help="last, best or a step's number; default: %(default)s")
    parser.add_argument(
        "--dtype", default=default.dtype, help="float32 or bfloat16; default: the parameters' own dtype"
    )
    parser.add_argument(
        "--shard_gigabytes", type=float, default=default.shard_gigabytes, help="largest file; default: %(default)s"
    )
    parser.add_argument(
        "--form", default=default.form, help="merged or adapter, of a run with LoRA; default: %(default)s"
    )
    return parser


if __name__ == "__main__":
    main()
