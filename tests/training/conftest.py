"""Images on disk for tests that go all the way through the loader."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from videos import folder_of


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files of 24 x 24 pixels, noise in two colours: train (32 + 32) and test (8 + 8)."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 32), ("test", 8)):
        for name, color in (("blue", [60, 90, 200]), ("red", [200, 90, 60])):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.normal(color, 40, (24, 24, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:03d}.jpg")
    return root


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 12 frames of 24 x 24 pixels in two classes: train (8 + 8) and test (4 + 4)."""
    return folder_of(tmp_path_factory.mktemp("videos"), {"train": 8, "test": 4})


@pytest.fixture
def settings(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("SSLFAST_CACHE", str(tmp_path / "cache"))
    return {
        **{"data": str(image_folder), "recipe": "simclr_small", "image_size": 16},
        **{"model_args": {"width": 8, "depth": 2}, "method_args": {"temperature": 0.3}},
        **{"steps": 10, "batch_size": 16, "lr": 0.003, "device": "cpu", "threads": 1},
        **{"log_every": 2, "checkpoint_every": 4},
    }
