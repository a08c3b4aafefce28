"""Data sets of images: a folder tree, or one of the built-in ones."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from .builtin import builtin_folder
from .cache import cache_folder
from .check import check_files

logger = logging.getLogger("sslfast")

OnBadImage = Literal["skip", "raise"]
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_SPLITS = {"train": ("train",), "test": ("test", "val"), "val": ("val", "test")}


@dataclass(frozen=True)
class ImageDataset:
    """The readable images of a data set.

    Attributes:
        name: what it was opened as.
        paths: files, sorted; a sample's id is its position here.
        labels: class of each file, a position in ``classes``; None where there are no labels.
        classes: names of the classes; None where there are no labels.
        skipped: (path, reason) of every file left out because it is bad.
        sizes: (height, width) of each file in pixels; None makes a loader look them up.
    """

    name: str
    paths: list[str]
    labels: list[int] | None = None
    classes: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    sizes: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.paths)


def open_dataset(
    spec: str,
    split: str = "train",
    cache_dir: str | None = None,
    *,
    on_bad_image: OnBadImage = "skip",
) -> ImageDataset:
    """Open a folder of images, or a built-in data set.

    Where FOLDER/train and FOLDER/test (or FOLDER/val) exist, ``split`` picks among them; any other
    folder is one training split. Images are searched for at any depth, by extension (jpg, jpeg,
    png, webp, bmp, tif, tiff, in any case); hidden files and folders are passed over. They are
    labelled by first-level sub-folder if every image lies in one and there are at least two, else
    unlabelled. Every file gets a quick check of its header and end mark.

    Args:
        spec: a folder, or ``builtin:NAME`` (see ``builtin``).
        split: "train", "test" or "val".
        cache_dir: for the results of the checks and the files of built-in sets; None is
            $SSLFAST_CACHE, $XDG_CACHE_HOME/sslfast or ~/.cache/sslfast.
        on_bad_image: "skip" leaves bad files out, counts them and names each in the log; "raise"
            stops.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images, none that is good, no such split, an unknown built-in set, or a bad
            file with ``on_bad_image="raise"``.
    """
    check_policy(on_bad_image)
    if split not in _SPLITS:
        raise ValueError(f"split is one of {sorted(_SPLITS)}; got '{split}'")
    cache = cache_folder(cache_dir)
    kind, _, name = spec.partition(":")
    root = builtin_folder(name, cache) if kind == "builtin" else Path(spec).expanduser().absolute()
    folder, classes = _split_folder(root, split)
    found = _find_images(folder)
    if not found:
        raise ValueError(f"no images in {folder}: no file ends in one of {' '.join(EXTENSIONS)}")
    paths = [os.path.join(folder, name) for name in found]

    verdicts = check_files(paths, str(folder), cache)
    reasons = [verdict.reason for verdict in verdicts]
    skipped = [(path, why) for path, why in zip(paths, reasons, strict=True) if why is not None]
    _report(skipped, len(paths), on_bad_image)

    good = [i for i, why in enumerate(reasons) if why is None]
    labels = _labels(found, classes)
    return ImageDataset(
        name=spec,
        paths=[paths[i] for i in good],
        labels=None if labels is None else [labels[i] for i in good],
        classes=None if labels is None else classes,
        skipped=skipped,
        sizes=[(verdicts[i].height, verdicts[i].width) for i in good],
    )


def check_policy(on_bad_image: str) -> None:
    """Raise ValueError unless it is one of OnBadImage."""
    if on_bad_image not in get_args(OnBadImage):
        raise ValueError(f"on_bad_image is 'skip' or 'raise'; got '{on_bad_image}'")


def _split_folder(root: Path, split: str) -> tuple[Path, list[str]]:
    """The folder of a split, and the names of the first-level sub-folders of all splits."""
    if not root.exists():
        raise FileNotFoundError(
            f"no such folder: {root}. Give a folder of images, or builtin:NAME for a built-in set"
        )
    if not root.is_dir():
        raise ValueError(f"{root} is a file; give the folder that holds the images")
    present = [name for name in _SPLITS if (root / name).is_dir()]
    if "train" in present and len(present) > 1:
        folder = next(root / name for name in _SPLITS[split] if name in present)
        # Classes of all splits together: a label means the same in each.
        tops = [root / name for name in present]
    elif split == "train":
        folder, tops = root, [root]
    else:
        raise ValueError(
            f"{root} has no '{split}' split: that takes {root / 'train'} and {root / split}"
        )
    classes = {
        entry.name
        for top in tops
        for entry in os.scandir(top)
        if entry.is_dir() and not entry.name.startswith(".")
    }
    return folder, sorted(classes)


def _find_images(folder: Path) -> list[str]:
    """Sorted paths of the images below ``folder``, relative to it; links are followed."""
    found = []
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [f for f in folders if not f.startswith(".")]
        if real not in seen:
            seen.add(real)
            found += [
                os.path.relpath(os.path.join(parent, name), folder)
                for name in files
                if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
            ]
    return sorted(found)


def _labels(found: list[str], classes: list[str]) -> list[int] | None:
    tops = [name.split(os.sep, 1)[0] if os.sep in name else None for name in found]
    if None in tops or len(classes) < 2:
        return None
    number = {name: i for i, name in enumerate(classes)}
    return [number[top] for top in tops if top is not None]


def _report(skipped: list[tuple[str, str]], total: int, on_bad_image: OnBadImage) -> None:
    if not skipped:
        return
    if on_bad_image == "raise":
        path, reason = skipped[0]
        more = f" ({len(skipped) - 1} more bad files)" if len(skipped) > 1 else ""
        raise ValueError(f"unreadable image: {path}: {reason}{more}")
    for path, reason in skipped:
        logger.warning("skipping unreadable image %s: %s", path, reason)
    logger.warning("skipped %d of %d images as unreadable", len(skipped), total)
    if len(skipped) == total:
        path, reason = skipped[0]
        raise ValueError(f"none of the {total} images is readable; the first, {path}: {reason}")
