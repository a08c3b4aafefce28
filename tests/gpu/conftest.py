"""What all GPU tests share."""

import os
import sys
from collections.abc import Iterator

import pytest
import torch


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
