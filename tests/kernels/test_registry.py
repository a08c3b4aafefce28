"""The registry finds, picks, refuses and explains."""

import logging
import sys
from dataclasses import replace

import pytest
import torch

import sslfast
from sslfast.kernels import registry
from sslfast.kernels.similarity_softmax import Pairing, Problem

SYMMETRIC = Problem("cpu", torch.float32, 64, 64, 8, True, Pairing(64, 32, leave_out_self=True))


def test_every_op_has_an_oracle_and_every_backend_the_contract() -> None:
    assert {"similarity_softmax", "philox"} <= set(registry.ops())
    for op in registry.ops():
        found = {b.name: b for b in registry.candidates(op)}
        assert "reference" in found
        for name, backend in found.items():
            if backend.module is None:
                assert backend.import_error, name
                continue
            assert backend.module.DEVICE in ("cpu", "cuda", "any")
            assert isinstance(backend.module.PRIORITY, int)


@pytest.mark.parametrize("op", ["ema", "adamw", "lars"])
def test_cuda_backends_come_after_triton_until_they_are_measured(op: str) -> None:
    """As similarity_softmax's, which has a table of the results that prove it."""
    found = {b.name: b.module for b in registry.candidates(op)}
    if found["triton"] is None:
        pytest.skip("no Triton")
    assert found["cuda"].PRIORITY < found["triton"].PRIORITY


def test_backends_reports_a_reason_for_what_cannot_run() -> None:
    table = sslfast.backends()
    assert table["similarity_softmax"]["reference"] is None
    if not torch.cuda.is_available():
        assert "CUDA" in table["philox"]["cuda"]


def test_best_backend_first_and_the_fall_back_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_told", set())
    registry._pick.cache_clear()
    double = replace(SYMMETRIC, dtype=torch.float64)
    with caplog.at_level(logging.WARNING, "sslfast"):
        assert registry.pick("similarity_softmax", double).__name__.endswith("tiled")
        registry._pick.cache_clear()
        registry.pick("similarity_softmax", double)
    told = [r.message for r in caplog.records if "float64" in r.message]
    assert len(told) == 1
    assert "'tiled' and not 'cpu'" in told[0]


def test_use_backend_nests_and_restores() -> None:
    with sslfast.use_backend("reference"):
        assert registry.forced_backend() == "reference"
        with sslfast.use_backend("tiled"):
            assert registry.pick("similarity_softmax", SYMMETRIC).__name__.endswith(".tiled")
        assert registry.pick("similarity_softmax", SYMMETRIC).__name__.endswith(".reference")
    assert registry.forced_backend() == "auto"
    sslfast.use_backend("tiled")
    assert registry.forced_backend() == "tiled"


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_forced", None)
    monkeypatch.setenv("SSLFAST_BACKEND", "reference")
    assert registry.pick("similarity_softmax", SYMMETRIC).__name__.endswith(".reference")
    monkeypatch.setenv("SSLFAST_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="unknown backend 'nonsense'"):
        registry.pick("similarity_softmax", SYMMETRIC)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'cuda13'.*reference"):
        sslfast.use_backend("cuda13")


def test_forced_backend_that_refuses_raises_its_reason() -> None:
    with (
        sslfast.use_backend("cpu"),
        pytest.raises(registry.BackendError, match="takes no float64"),
    ):
        registry.pick("similarity_softmax", replace(SYMMETRIC, dtype=torch.float64))


def test_forced_backend_that_an_op_lacks_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sslfast.kernels.philox import Problem as PhiloxProblem

    monkeypatch.setattr(registry, "_told", set())
    with sslfast.use_backend("tiled"), caplog.at_level(logging.WARNING, "sslfast"):
        registry.pick("philox", PhiloxProblem("cpu", 3, 5))
    assert "philox has no backend 'tiled'" in caplog.text


def test_a_new_file_is_a_new_backend_and_a_broken_one_says_why(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathlib import Path

    import sslfast.kernels.similarity_softmax as op

    folder = Path(str(tmp_path))
    (folder / "added.py").write_text(
        "from sslfast.kernels.similarity_softmax.reference import *\n"
        "DEVICE = 'any'\nPRIORITY = 99\n\ndef supports(problem):\n    return None\n"
    )
    (folder / "broken.py").write_text("import a_package_nobody_has\n")
    monkeypatch.setattr(op, "__path__", [*op.__path__, str(folder)])
    registry.candidates.cache_clear()
    registry.backend_names.cache_clear()
    registry._pick.cache_clear()
    try:
        assert registry.pick("similarity_softmax", SYMMETRIC).__name__.endswith(".added")
        assert "a_package_nobody_has" in str(sslfast.backends()["similarity_softmax"]["broken"])
    finally:
        registry.candidates.cache_clear()
        registry.backend_names.cache_clear()
        registry._pick.cache_clear()
        sys.modules.pop("sslfast.kernels.similarity_softmax.added", None)
