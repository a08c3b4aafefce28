"""Every Triton kernel compiles for every supported architecture, well: no GPU needed.

Well means: nothing spilled, shared memory within the limit, tensor cores in use, and on Hopper no
wgmma that ptxas makes wait for the one before. Compilations are cached by Triton in the user's
cache. ``compile_ahead_of_time.py`` has a process of its own, for another version of Triton.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks import kernel_cases
from sslfast.kernels.tiles import static_tile

# Shared memory of a block, KB. The table for sm_80 also serves GPUs that have less than the 163 of
# an A100.
SHARED = {80: 99, 90: 227, 100: 227}

# The most used of each kind, by the names of benchmarks/kernel_cases.py.
SOME = (
    r"softmax both (bf16|fp32) D=128: ",
    r"contrast bf16 D=128: ",
    r"grouped_softmax masked bf16 D=128: ",
    r"matryoshka_softmax of two (bf16|fp32) D=128 K=4: ",
    r"linear_cross_entropy (bf16 D=128 V=700|softcap bf16 D=128): ",
    r"prototype_cross_entropy (DINO|MSN|iBOT) bf16 K=65536 with bias: ",
    r"prototype_cross_entropy MSN fp32 K=65536 with bias: ",
    r"(gather|restore|mse|patchify)\w* bf16 D=768: ",
    r"(philox words|ema mixed|mask L=196|with teacher): ",
    r"(unit_rows|cross_correlation) bf16 D=128: ",
    r"sigreg M=128: ",
)
HOPPER = (
    *SOME,
    r"softmax (both|rows of two|columns of two) \w+ D=128: ",
    r"(softmax \w+|contrast) bf16 D=(256|512): ",
    r"(softmax both of two|contrast) large bf16 D=512: ",
)
QUICK = {80: SOME, 90: HOPPER, 100: SOME}
# Bytes that are known to be spilled, by the names of kernels; all others spill nothing.
SPILLED = {
    r"patchify_visible \w+ D=129: ": 568,  # an embedding of a width that no model has
    r"softmax rows of two fp32 D=123: ": 16,  # beside a loop of some hundred instructions
}


def compile_all(architecture: int, patterns: Sequence[str], path: str = "") -> list[dict[str, Any]]:
    script = Path(__file__).with_name("compile_ahead_of_time.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if path:
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([path, known] if known else [path])
    command = [sys.executable, script, str(architecture), "|".join(patterns)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(kernels: list[dict[str, Any]]) -> None:
    assert kernels
    for k in kernels:
        architecture = k["architecture"]
        known = [most for name, most in SPILLED.items() if re.search(name, k["name"])]
        assert k["spilled"] <= max(known, default=0), k
        assert k["shared"] <= SHARED[architecture] * 1024, k
        assert k["serialised"] == [], k
        assert 2 * k["arrive"] <= k["wgmma"], k
        if k["matrix"]:
            assert k[{80: "mma", 90: "wgmma", 100: "tcgen05"}[architecture]], k


def test_patterns_name_kernels() -> None:
    """A kernel has the name of the first case that launches it: none is forgotten by that."""
    names = [launch.name for launch in kernel_cases.record(90)]
    for pattern in (*HOPPER, *SPILLED):
        assert any(re.search(pattern, name) for name in names), pattern


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", SHARED)
def test_kernels_compile_well(architecture: int) -> None:
    check(compile_all(architecture, QUICK[architecture]))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", ["", os.environ.get("SSLFAST_TRITON_36")])
def test_programs_of_the_tables_fit(path: str | None) -> None:
    """As many programs a multiprocessor of Hopper as the tables say, by registers and memory."""
    if path is None:
        pytest.skip("SSLFAST_TRITON_36 names no folder")
    for dim in (64, 128):
        tile = static_tile("statistics", dim, "16-bit", 90)
        assert tile.programs == 2
        (k,) = compile_all(90, [rf"softmax both bf16 D={dim}: forward_kernel"], path)
        assert tile.programs * 32 * tile.warps * k["registers"] <= 65536, k
        assert tile.programs * (k["shared"] + 1024) <= 228 * 1024, k


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif("SSLFAST_TEST_ALL" not in os.environ, reason="twenty minutes: SSLFAST_TEST_ALL")
@pytest.mark.parametrize("architecture", SHARED)
def test_all_kernels_compile_well(architecture: int) -> None:
    check(compile_all(architecture, []))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", SHARED)
def test_kernels_compile_well_with_the_oldest_triton(architecture: int) -> None:
    path = os.environ.get("SSLFAST_TRITON_36")
    if not path:
        pytest.skip("SSLFAST_TRITON_36 names no folder: pip install --target FOLDER triton==3.6.0")
    kernels = compile_all(architecture, SOME, path)
    assert {k["triton"] for k in kernels} == {"3.6.0"}
    check(kernels)
