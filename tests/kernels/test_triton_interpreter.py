"""Runs the Triton kernels on this machine, through Triton's interpreter: no GPU needed.

Triton decides at import whether it interprets, so these tests have their own process. Files that
test every backend of an op that runs here are taken as they are.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["interpreted_kernels", "test_ema", "test_optimisers"])
def test_kernels_in_the_interpreter(name: str) -> None:
    file = Path(__file__).with_name(f"{name}.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    command += ["-k", "interpreted or triton"]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=file.parent,  # not the root, where the sources would hide an installed package
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
