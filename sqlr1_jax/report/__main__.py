"""python -m sqlr1_jax.report --workdir=runs/first: writes report.html of a run, finished or not."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sqlr1_jax.errors import exit_on_error
from sqlr1_jax.io import user_path
from sqlr1_jax.report import page


@exit_on_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is without the program's name."""
    parser = argparse.ArgumentParser(prog="python -m sqlr1_jax.report", description="Writes a run's report.html.")
    parser.add_argument("--workdir", type=user_path, required=True, help="the run's folder; the run may be in progress")
    args = parser.parse_args(argv)
    page.write(args.workdir)
    print(args.workdir / "report.html")


if __name__ == "__main__":
    main()
