"""The build: what is installed with and without a compiler, and what nvcc made."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sslfast.kernels.extension import extension

ROOT = Path(__file__).resolve().parents[1]


def pip_install(target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    pip = [sys.executable, "-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation"]
    return subprocess.run(
        [*pip, "--target", str(target), str(ROOT)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=target.parent,
    )


def python(target: Path, code: str) -> str:
    """Run code against the package in ``target`` alone, without the checkout's editable finder."""
    alone = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'ditable' not in repr(f)]"
    done = subprocess.run(
        [sys.executable, "-c", f"{alone}\n{code}"],
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
        cwd=target,
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_a_machine_without_a_compiler_gets_the_package_and_is_told(tmp_path: Path) -> None:
    target = tmp_path / "site"
    environment = {"CC": "/nonexistent", "CXX": "/nonexistent", "SSLFAST_CUDA": "0"}
    done = pip_install(target, **environment)
    assert done.returncode == 0, done.stderr
    assert "the compiled kernels (sslfast._C) were not built" in done.stdout + done.stderr
    assert "apt install g++" in done.stdout + done.stderr
    shown = python(
        target,
        "import sslfast, torch; from sslfast.losses import NTXentLoss\n"
        "loss = NTXentLoss(0.1)(torch.randn(8, 4), torch.randn(8, 4))\n"
        "print(sslfast.__file__, loss.isfinite().item(),"
        " sslfast.backends()['similarity_softmax']['cpu'])",
    )
    assert str(target) in shown
    assert "True needs the compiled extension" in shown


@pytest.mark.slow
def test_pip_install_brings_the_kernels(tmp_path: Path) -> None:
    """Objects that an editable install has left are not compiled again."""
    target = tmp_path / "site"
    done = pip_install(target, SSLFAST_BUILD="1")
    assert done.returncode == 0, done.stderr
    shown = python(
        target,
        "import sslfast, sslfast.kernels; print(sslfast.kernels.__file__,"
        " sslfast.backends()['similarity_softmax']['cpu'])",
    )
    assert shown == f"{target}/sslfast/kernels/__init__.py None"
    assert (target / "sslfast" / "py.typed").exists()
    assert not (target / "kernels").exists()


def test_a_demanded_cuda_build_without_nvcc_fails(tmp_path: Path) -> None:
    environment = {"SSLFAST_CUDA": "1", "CUDACXX": "/nonexistent", "PATH": "/usr/bin:/bin"}
    done = pip_install(tmp_path / "site", **environment)
    assert done.returncode != 0


def test_cuda_kernels_do_not_spill() -> None:
    module = extension()
    if module is None or not module.CUDA_ARCHITECTURES:
        pytest.skip("built without CUDA")
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run(
        [str(tool), "--dump-resource-usage", str(module.__file__)],
        capture_output=True,
        text=True,
        check=True,
    )
    usage = re.findall(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", done.stdout)
    assert len(usage) >= len(module.CUDA_ARCHITECTURES.split())
    for registers, stack, local in usage:
        assert 0 < int(registers) <= 255
        assert int(stack) == int(local) == 0


def test_errors_of_cuda_name_the_kernel_and_the_sizes() -> None:
    module = extension()
    if module is None or not module.CUDA_ARCHITECTURES:
        pytest.skip("built without CUDA")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: nothing fails")
    problem = (0, 0, 60, 0, 70, 8, 0, (0, 0, 0, 0, False))
    for backward in (False, True):
        with pytest.raises(RuntimeError, match=r"similarity_softmax.*60 x 70 logits, 8 features"):
            module.similarity_workspace_cuda(problem, backward)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["similarity_forward", "ema"])
def test_cuda_kernels_compile_with_their_checks(kernel: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    command = [
        nvcc, "-std=c++17", "-O3", "-DNDEBUG", "-lineinfo", "-DSSLFAST_CUDA_DEBUG",
        "-Werror=all-warnings", "-ptx", "-arch=compute_80", "-I", ROOT / "csrc/include",
        ROOT / f"csrc/cuda/{kernel}.cu", "-o", tmp_path / "out.ptx",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    assert "__assertfail" in (tmp_path / "out.ptx").read_text()


def test_sanitizing_without_the_tool_says_where_it_comes_from(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from benchmarks import gpu
    from benchmarks.harness.parts import Run

    monkeypatch.setattr(shutil, "which", lambda name: None)
    run = Run(tmp_path / "gpu.json", tmp_path, {}, 60, tmp_path)
    options = gpu.arguments().parse_args(["--out", str(tmp_path), "--sanitize"])
    assert gpu.chosen_parts(options, run) == []
    assert "compute-sanitizer was not found" in run.outcomes[0].output
    assert run.status() == 1


def test_instruction_set_levels_agree() -> None:
    """Every level that this processor has gives the same losses."""
    module = extension()
    if module is None:
        pytest.skip("the extension was not built")
    code = (
        "import torch, sslfast; from sslfast.kernels.extension import extension\n"
        "from sslfast.functional import ntxent\n"
        "torch.manual_seed(0); a, b = torch.randn(2, 300, 37).unbind(); a.requires_grad_()\n"
        "sslfast.use_backend('cpu'); loss = ntxent(a, b, 0.05); loss.backward()\n"
        "print(extension().instruction_set(), loss.item(), a.grad.norm().item())"
    )
    results = {}
    for level in ("baseline", "v3", "v4"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "SSLFAST_CPU_LEVEL": level},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            name, loss, norm = done.stdout.split()
            assert name == level
            results[level] = (float(loss), float(norm))
        else:
            assert "is not a level of this processor" in done.stderr
    assert "baseline" in results
    for result in results.values():
        assert result == pytest.approx(results["baseline"], rel=1e-5)
