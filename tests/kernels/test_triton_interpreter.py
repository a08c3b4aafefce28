"""Runs the Triton kernels on this machine, through Triton's interpreter: no GPU needed.

Triton decides at import whether it interprets, so these tests have their own processes. Files that
test every backend of an op that runs here are taken as they are: it is one more there.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "tests",
    [
        ["interpreted_kernels.py"],
        ["interpreted_blocks.py"],
        ["interpreted_losses.py"],
        ["-k", "triton", "test_unit_rows.py"],
        ["-k", "triton", "test_patch_mask.py", "test_masked_mse.py"],
        ["-k", "triton", "test_ema.py", "test_optimisers.py"],
    ],
    ids=["similarity_softmax", "blocks", "losses", "unit_rows", "patches", "many_tensors"],
)
def test_kernels_in_the_interpreter(tests: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=HERE,  # not the root, where the sources would hide an installed package
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
