"""Data sets of images or videos: a folder tree, or one of the built-in ones."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from sslfast._arguments import checked

from . import video
from .builtin import builtin_folder
from .cache import cache_folder
from .check import check_files

logger = logging.getLogger("sslfast")

OnBadImage = Literal["skip", "raise"]
Modality = Literal["image", "video"]
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_EXTENSIONS: dict[Modality, tuple[str, ...]] = {"image": EXTENSIONS, "video": video.EXTENSIONS}
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


@dataclass(frozen=True)
class VideoDataset(ImageDataset):
    """The readable videos of a data set: as ImageDataset, and how long they are.

    Attributes:
        frames: of each file.
    """

    frames: list[int] = field(default_factory=list)


@checked
def open_dataset(
    spec: str,
    split: str = "train",
    cache_dir: str | None = None,
    *,
    on_bad_image: OnBadImage = "skip",
    modality: Modality = "image",
) -> ImageDataset:
    """Open a folder of images or of videos, or a built-in data set.

    Where FOLDER/train and FOLDER/test (or FOLDER/val) exist, ``split`` picks among them; any other
    folder is one training split. Files are searched for at any depth, by extension (images: jpg,
    jpeg, png, webp, bmp, tif, tiff; videos: mp4, m4v, mov, mkv, webm, avi; in any case);
    hidden files and folders are passed over. They are labelled by first-level sub-folder if every
    file lies in one and there are at least two, else unlabelled. Every file gets a quick check: of
    its header and end mark, or of its index.

    Args:
        spec: a folder, or ``builtin:NAME`` (see ``builtin``).
        split: "train", "test" or "val".
        cache_dir: for the results of the checks and the files of built-in sets; None is
            $SSLFAST_CACHE, $XDG_CACHE_HOME/sslfast or ~/.cache/sslfast.
        on_bad_image: "skip" leaves bad files out, counts them and names each in the log; "raise"
            stops; so for videos.
        modality: "image", or "video", which gives a VideoDataset. Files of the other kind are
            passed over.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images or videos, none that is good, no such split, an unknown built-in set,
            one of the other kind, or a bad file with ``on_bad_image="raise"``.
        MissingExtra: PyAV is not installed, which reads videos.
    """
    check_policy(on_bad_image)
    if modality not in _EXTENSIONS:
        raise ValueError(f"modality is one of {sorted(_EXTENSIONS)}; got '{modality}'")
    if modality == "video":
        video.av()  # or say at once that it is missing
    if split not in _SPLITS:
        raise ValueError(f"split is one of {sorted(_SPLITS)}; got '{split}'")
    cache = cache_folder(cache_dir)
    kind, _, name = spec.partition(":")
    root = builtin_folder(name, cache) if kind == "builtin" else Path(spec).expanduser().absolute()
    folder, classes = _split_folder(root, split)
    found = _find_files(folder, _EXTENSIONS[modality])
    if not found:
        raise ValueError(_nothing_found(folder, modality))
    paths = [os.path.join(folder, name) for name in found]

    look = video.check_video if modality == "video" else None
    verdicts = check_files(paths, str(folder), cache, look=look)
    reasons = [verdict.reason for verdict in verdicts]
    skipped = [(path, why) for path, why in zip(paths, reasons, strict=True) if why is not None]
    _report(skipped, len(paths), on_bad_image, modality)

    good = [i for i, why in enumerate(reasons) if why is None]
    labels = _labels(found, classes)
    dataset = ImageDataset(
        name=spec,
        paths=[paths[i] for i in good],
        labels=None if labels is None else [labels[i] for i in good],
        classes=None if labels is None else classes,
        skipped=skipped,
        sizes=[(verdicts[i].height, verdicts[i].width) for i in good],
    )
    if modality == "image":
        return dataset
    return VideoDataset(**vars(dataset), frames=[verdicts[i].frames for i in good])


def check_policy(on_bad_image: str) -> None:
    """Raise ValueError unless it is one of OnBadImage."""
    if on_bad_image not in get_args(OnBadImage):
        raise ValueError(f"on_bad_image is 'skip' or 'raise'; got '{on_bad_image}'")


def _split_folder(root: Path, split: str) -> tuple[Path, list[str]]:
    """The folder of a split, and the names of the first-level sub-folders of all splits."""
    if not root.exists():
        raise FileNotFoundError(
            f"no such folder: {root}. Give a folder of images or videos, or builtin:NAME for a "
            "built-in set"
        )
    if not root.is_dir():
        raise ValueError(f"{root} is a file; give the folder that holds the files")
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


def _find_files(folder: Path, extensions: tuple[str, ...]) -> list[str]:
    """Sorted paths of such files below ``folder``, relative to it; links are followed."""
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
                if name.lower().endswith(extensions) and not name.startswith(".")
            ]
    return sorted(found)


def _nothing_found(folder: Path, modality: Modality) -> str:
    ends = " ".join(_EXTENSIONS[modality])
    message = f"no {modality}s in {folder}: no file ends in one of {ends}"
    for other, extensions in _EXTENSIONS.items():
        count = len(_find_files(folder, extensions))
        if count:
            message += (
                f". It holds {count} {other}s: for these, choose a method and a recipe that learn "
                f'from {other}s (in Python: modality="{other}")'
            )
    return message


def _labels(found: list[str], classes: list[str]) -> list[int] | None:
    tops = [name.split(os.sep, 1)[0] if os.sep in name else None for name in found]
    if None in tops or len(classes) < 2:
        return None
    number = {name: i for i, name in enumerate(classes)}
    return [number[top] for top in tops if top is not None]


def _report(
    skipped: list[tuple[str, str]], total: int, on_bad_image: OnBadImage, modality: Modality
) -> None:
    if not skipped:
        return
    if on_bad_image == "raise":
        path, reason = skipped[0]
        more = f" ({len(skipped) - 1} more bad files)" if len(skipped) > 1 else ""
        raise ValueError(f"unreadable {modality}: {path}: {reason}{more}")
    for path, reason in skipped:
        logger.warning("skipping unreadable %s %s: %s", modality, path, reason)
    logger.warning("skipped %d of %d %ss as unreadable", len(skipped), total, modality)
    if len(skipped) == total:
        path, reason = skipped[0]
        raise ValueError(
            f"none of the {total} {modality}s is readable; the first, {path}: {reason}"
        )
