from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable


def test_the_command_does_not_import_jax(fake_run: Callable) -> None:
    workdir = fake_run().whole().workdir
    code = "import sys; sys.modules['jax'] = None; from sqlr1_jax.report.__main__ import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, f"--workdir={workdir}"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(workdir / "report.html")), done.stderr
