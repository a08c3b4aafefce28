"""Runs the Triton kernels on this machine, through Triton's interpreter: no GPU needed.

Triton decides at import whether it interprets, so these tests have their own processes, as many at
a time as there are cores. Files that test every backend of an op that runs here are taken as they
are: it is one more there.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton")


HERE = Path(__file__).parent
TESTS = {  # those that take longest first
    "blocks": ["interpreted_blocks.py"],
    "many_tensors": ["-k", "triton", "test_ema.py", "test_optimisers.py"],
    "similarity_softmax": ["interpreted_kernels.py"],
    "patches": ["-k", "triton", "test_patch_mask.py", "test_masked_mse.py", "test_sigreg_op.py"],
    "losses": ["interpreted_losses.py"],
    "groups": ["interpreted_groups.py"],
    "prefixes": ["interpreted_prefixes.py"],
    "prototypes": ["interpreted_prototypes.py"],
    "unit_rows": ["-k", "triton", "test_unit_rows.py", "test_cross_correlation.py"],
}
Done = subprocess.CompletedProcess[str]


def interpret(name: str) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS[name]],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE,  # not the root, where the sources would hide an installed package
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def processes(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Done]]]:
    """Those of the tests that were chosen, started at once."""
    chosen = [item for item in request.session.items if item.path == request.path]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {name: pool.submit(interpret, name) for name in TESTS if f"[{name}]" in str(chosen)}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TESTS)
def test_kernels_in_the_interpreter(name: str, processes: dict[str, Future[Done]]) -> None:
    done = processes[name].result()
    assert done.returncode == 0, done.stdout
