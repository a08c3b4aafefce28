"""Shared set-up of the test suite."""

import os
import tempfile

# A compiled graph cached by an earlier checkout must not be run against this one's ops.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="sslfast-inductor-")

import pytest
import torch
from hypothesis import settings

# A landing must not hang on the draw; everywhere else examples are new on every run.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _automatic_backend() -> None:
    """No test leaves a backend forced for the next."""
    import sslfast

    sslfast.use_backend("auto")


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> torch.Generator:
    """Fresh random inputs on every run; the seed is printed with a failure."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)
