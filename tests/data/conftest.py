"""Real pictures in small folders, and a cache of the tests' own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslfast.data import builtin


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch):
    monkeypatch.setenv("SSLFAST_CACHE", str(cache))


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """Forty real patches, uint8 [32, 32, 3], four of each photograph."""
    images, _ = builtin("photos", "test")
    return [images[i].numpy() for i in range(0, 1919, 48)]


@pytest.fixture
def folder(tmp_path, pictures) -> Path:
    """DIR/even and DIR/odd with 20 JPEG files each."""
    for i, picture in enumerate(pictures):
        parent = tmp_path / "images" / ("odd" if i % 2 else "even")
        parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(parent / f"{i:02d}.jpg", quality=95, subsampling=0)
    return tmp_path / "images"
