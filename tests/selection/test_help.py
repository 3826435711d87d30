"""What a command imports before it does something."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.parametrize("command", ["rollouts", "selection", "evaluate", "exchange", "figures"])
def test_help_comes_without_the_libraries_that_take_seconds(command):
    script = (
        "import runpy, sys\n"
        "try:\n"
        f"    runpy.run_module('reweighting.{command}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as error:\n"
        "    slow = {'torch', 'matplotlib', 'openai', 'openpyxl'} & set(sys.modules)\n"
        "    sys.exit(error.code or str(slow or '') or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m reweighting.{command}")
