"""examples/own_loop.py runs, in one process and in two."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sslfast.models import convnet_small

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "own_loop.py"


@pytest.fixture
def flags(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("SSLFAST_CACHE", str(tmp_path / "cache"))
    data, out = str(image_folder), str(tmp_path / "encoder.pt")
    return ["--data", data, "--batch-size", "8", "--steps", "3", "--out", out]


def test_one_process(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *flags])
    runpy.run_path(str(PROGRAM), run_name="__main__")
    assert capsys.readouterr().out.startswith("step 3  loss ")
    torch.manual_seed(0)
    encoder = convnet_small()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.load_state_dict(torch.load(flags[-1]))
    moved = [name for name, value in encoder.named_parameters() if not value.equal(before[name])]
    assert len(moved) == len(list(encoder.parameters()))


def test_two_processes(flags: list[str]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(PROGRAM), *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 3  loss ") == 1  # rank 0's alone
    convnet_small().load_state_dict(torch.load(flags[-1]))
