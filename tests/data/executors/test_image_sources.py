"""Images that lie in no folder: any source of bytes or pixels makes the views that files make."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from sslfast.data import Loader, Source, make_loader, open_dataset, recipe
from sslfast.data.executors.executor import BadSampleError
from sslfast.data.sources.manifest import Manifest

SMALL = recipe("simclr_small")


@dataclass(frozen=True)
class Pictures:
    """Images in memory: bytes of files, or pixels."""

    modality: ClassVar[str] = "image"

    images: list[Any]
    labels: list[int]
    classes: list[str] | None = None

    @property
    def manifest(self) -> Manifest:
        return Manifest("memory", None, ["images"], [len(self.images)], "x")

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> Any:
        if isinstance(self.images[i], Exception):
            raise self.images[i]
        return self.images[i]

    def label(self, i: int) -> int:
        return self.labels[i]

    def sample_name(self, i: int) -> str:
        return f"picture {i}"


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def views(source: Source, **options: Any) -> list[torch.Tensor]:
    """Everything of two epochs."""
    loader = make_loader(source, SMALL, **({"batch_size": 8, "threads": 1} | options))
    batches = [*loader, *loader]
    loader.close()
    return [t for b in batches for t in (*b.views, b.sample_ids, b.labels)]


@pytest.mark.parametrize("read", [lambda path: Path(path).read_bytes(), pixels])
def test_the_same_images_make_the_same_views(read: Callable[[str], Any], folder: Path) -> None:
    dataset = open_dataset(str(folder))
    source = Pictures([read(path) for path in dataset.paths], dataset.labels)
    assert isinstance(source, Source)
    before = len(os.listdir("/proc/self/fd"))
    for found, wanted in zip(views(source), views(dataset), strict=True):
        assert torch.equal(found, wanted)
    assert len(os.listdir("/proc/self/fd")) <= before  # nothing in memory is left open


def test_what_pillow_decodes_and_what_cannot_be_read(tmp_path: Path, folder: Path) -> None:
    paths = open_dataset(str(folder)).paths
    with Image.open(paths[0]) as image:
        image.save(tmp_path / "0.tif")
    images: list[Any] = [Path(path).read_bytes() for path in paths]
    images[0] = (tmp_path / "0.tif").read_bytes()
    images[1] = pixels(paths[1]).mean(2).astype(np.uint8)  # grey
    images[2] = BadSampleError("smudged")
    images[3] = OSError(5, "Input/output error")
    images[4] = images[4][: len(images[4]) // 2]
    source = Pictures(images, [0] * len(images))
    before = len(os.listdir("/proc/self/fd"))
    loader: Loader = make_loader(source, SMALL, batch_size=8, threads=1, train=False)
    batches = list(loader)
    loader.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    ids = [i for batch in batches for i in batch.sample_ids.tolist()]
    assert ids == [0, 1, *range(5, len(images))]
    assert {name: why.partition(":")[0] for name, why in loader.skipped} == {  # type: ignore[attr-defined]
        "picture 2": "smudged",
        "picture 3": "Input/output error",
        "picture 4": "Pillow",
    }


@pytest.mark.parametrize("sample", [np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), "a.png"])
def test_what_is_no_image_is_explained(sample: Any) -> None:
    with pytest.raises(TypeError, match=r"reads the bytes of a file, or pixels uint8 \[H, W, 3\]"):
        make_loader(Pictures([sample] * 4, [0] * 4), SMALL, batch_size=2, threads=1)
