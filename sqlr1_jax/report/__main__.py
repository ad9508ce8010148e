"""python -m sqlr1_jax.report --workdir=runs/first: writes the run's report.html anew, at any point of the run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sqlr1_jax.errors import exit_on_error
from sqlr1_jax.report import page


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> None:
    """The command; `argv` without the program's name."""
    parser = argparse.ArgumentParser(prog="python -m sqlr1_jax.report", description="Writes a run's report.html anew.")
    parser.add_argument("--workdir", type=Path, required=True, help="the run's folder; the run may still be going")
    args = parser.parse_args(argv)
    page.write(args.workdir)
    print(args.workdir / "report.html")


if __name__ == "__main__":
    main()
