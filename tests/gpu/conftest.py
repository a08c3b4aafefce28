"""What all GPU tests share."""

import os
import sys
from collections.abc import Iterator

import pytest
import torch

# Deterministic algorithms ask for it, and torch reads it once, at the first product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that launch the same kernels go to one worker, so that none is compiled twice.

    That is decided by a test's backend, dtype and D; by its temperature or its sizes it is not.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        kernels = [str(given[key]) for key in ("name", "dtype", "d", "make") if key in given]
        item.add_marker(pytest.mark.xdist_group("-".join([item.originalname, *kernels])))


@pytest.fixture(autouse=True)
def _context_lives() -> Iterator[None]:
    """A kernel that spoils the CUDA context fails its own test and no other: the worker ends."""
    yield
    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            raise
        print(f"{os.environ['PYTEST_CURRENT_TEST']}: {error}", file=sys.__stderr__, flush=True)
        os._exit(1)  # pytest-xdist starts another, and names this test as the one that crashed it
