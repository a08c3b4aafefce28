"""What is recorded without a GPU is what a launch would compile; archives carry it elsewhere."""

import json
import tarfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import compiled, kernel_cases
from benchmarks.harness import compiling, launches
from sslfast.kernels import registry
from sslfast.kernels.gpu import INTERPRETED
from sslfast.kernels.similarity_softmax import Pairing

if INTERPRETED:
    pytest.skip("kernels are emulated here", allow_module_level=True)


def forward(*sizes: int, offset: int = 0, architecture: int = 90) -> list[launches.Launch]:
    (backend,) = kernel_cases.backends("similarity_softmax")
    x = kernel_cases.empty(*sizes, dtype=torch.bfloat16, offset=offset)
    with launches.recording(architecture) as since:
        backend.module.forward(x, None, kernel_cases.empty(), Pairing(len(x)), False)
        return since("case")


def test_features_compile_again_but_sizes_and_addresses_do_not() -> None:
    def hashes(found: list[launches.Launch]) -> list[str]:
        return [launch.source.hash() for launch in found if "forward" in launch.name]

    first = hashes(forward(4096, 128))
    assert len(first) == 1
    assert hashes(forward(33, 128)) == first
    assert hashes(forward(4096, 64)) != first
    assert hashes(forward(4096, 128, offset=1)) == first  # a copy that is aligned
    assert hashes(forward(4096, 123)) == first  # and one with zeros behind
    assert len(launches.distinct(forward(140_000, 128) + forward(150_001, 128))) == 1


def test_architectures_are_recorded_apart() -> None:
    """Tiles depend on them, and Triton remembers nothing of another one."""
    sm80, sm90 = (forward(4096, 128, architecture=n)[0] for n in (80, 90))
    assert sm80.options["arch"] == "sm80"
    assert sm90.options["arch"] == "sm90"
    assert sm80.options["num_stages"] != sm90.options["num_stages"]


def test_every_op_with_triton_kernels_has_cases_and_every_case_launches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("a GPU was asked: CUDA is of no use in processes forked after that")

    for name in ("is_available", "device_count", "current_device", "init", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, asked)
    ops = {op for op in registry.ops() if kernel_cases.backends(op)}
    assert set(kernel_cases.CASES) == ops
    for op, cases in kernel_cases.CASES.items():
        with launches.recording(90) as since:
            for backend in kernel_cases.backends(op):
                for name, call in cases():
                    call(backend.module)
                    assert since(name), (op, backend.name, name)


def test_recording_leaves_nothing_behind() -> None:
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    before = JITFunction._do_compile, driver._active, torch.cuda.get_device_name
    with pytest.raises(ZeroDivisionError), launches.recording(90):
        raise ZeroDivisionError
    assert before == (JITFunction._do_compile, driver._active, torch.cuda.get_device_name)


def _one(launch: launches.Launch) -> str:
    if launch.options["num_warps"] == 3:
        raise KeyError("three")
    return launch.name


def test_what_raises_in_a_process_is_a_result() -> None:
    (launch,) = forward(140_000, 128)
    broken = launches.Launch("broken", launch.kernel, launch.source, {"num_warps": 3}, 90)
    found = {n.name: result for n, result in launches.in_parallel([launch, broken], _one, 2)}
    assert found[launch.name] == launch.name
    assert "three" in str(found["broken"])


def test_an_archive_is_found_by_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled once, unpacked elsewhere: not compiled again, and without its sources."""
    with launches.recording(90) as since:
        for _, call in kernel_cases.philox():
            call(kernel_cases.backends("philox")[0].module)
        chosen = since("philox")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "one"))
    first, second = (compiling.compile_all(chosen, 1) for _ in range(2))
    assert (first.compiled, second.compiled) == (1, 0)
    assert first.hashes == second.hashes
    other = compiled.keep(tmp_path / "nothing.tar.xz", tmp_path / "one", {"another"})
    size = compiled.keep(tmp_path / "kernels.tar.xz", tmp_path / "one", first.hashes)
    assert other < size < 100_000
    assert compiled.take(tmp_path / "kernels.tar.xz", tmp_path / "two") == 1
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "two"))
    assert compiling.compile_all(chosen, 1).compiled == 0
    (group,) = (tmp_path / "two").glob("*/__grp__*")
    names = json.loads(group.read_text())["child_paths"]
    assert all(Path(path).parent == group.parent for path in names.values())


@pytest.mark.parametrize("name", ["../evil.json", "a/../../evil.json", "a/b/c.json", "plain.json"])
def test_an_archive_writes_nowhere_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with tarfile.open(tmp_path / "bad.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "file", name)
    with pytest.raises(ValueError, match="no archive of kernels"):
        compiled.take(tmp_path / "bad.tar.xz", tmp_path / "cache")
    assert not list(tmp_path.rglob("evil*"))


def test_a_kernel_that_does_not_compile_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    (launch,) = forward(140_000, 128)
    bad = launches.Launch(
        "bad", launch.kernel, launch.source, launch.options | {"num_warps": 5}, 90
    )
    done = compiling.compile_all([bad], 1)
    assert (done.compiled, done.hashes) == (0, set())
    assert "must be a power of 2" in done.failed["bad"]
