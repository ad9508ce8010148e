"""Writes a run's report.html again: python -m sqlr1_jax.report --workdir=runs/first."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sqlr1_jax.errors import exit_on_error
from sqlr1_jax.report import page


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> None:
    """The command; `argv` excludes the program's name."""
    parser = argparse.ArgumentParser(prog="python -m sqlr1_jax.report", description="Writes a run's report.html again.")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the run, which may still be running")
    args = parser.parse_args(argv)
    page.write(args.workdir)
    print(args.workdir / "report.html")


if __name__ == "__main__":
    main()
