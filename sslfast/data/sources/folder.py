"""Data sets of images or videos: a folder tree, or one of the built-in ones."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from sslfast._arguments import checked
from sslfast._files import cache_folder
from sslfast.data.sources import videos
from sslfast.data.sources.builtin import builtin_folder
from sslfast.data.sources.check import Verdict, check_files
from sslfast.data.sources.manifest import Manifest
from sslfast.data.sources.splits import SERVES, split_folders
from sslfast.data.sources.walk import Found, find_files, sub_folders

logger = logging.getLogger("sslfast")

OnBadImage = Literal["skip", "raise"]
Modality = Literal["image", "video"]
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".avif"),
)
_EXTENSIONS: dict[Modality, tuple[str, ...]] = {"image": EXTENSIONS, "video": videos.EXTENSIONS}
_BUILTIN = "builtin:"
MAX_PIXELS = 178_956_970  # Pillow's: an image of 3 bytes a pixel then takes half a gigabyte


@dataclass(frozen=True)
class ImageDataset:
    """The readable images of a data set.

    Attributes:
        name: what it was opened as.
        paths: files, sorted; a sample's id is its position here.
        labels: class of each file, a position in ``classes``; None where there are no labels.
        classes: names of the classes; None where there are no labels.
        skipped: (path, reason) of every file left out because it is bad, and of every folder that
            could not be listed.
        sizes: (height, width) of each file in pixels; None makes a loader look them up.
        by_pillow: those of ``paths`` that DALI cannot be given, and Pillow decodes.
        passed_over: of everything else in the folder, how many of each kind: extensions of other
            files, "hidden" and so on.
        root: the folder it was opened from, absolute.
        folder: the folder of the split, which the files lie in; None where no folder was opened.
        lengths: bytes of each file.
    """

    name: str
    paths: list[str]
    labels: list[int] | None = None
    classes: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    sizes: list[tuple[int, int]] | None = None
    by_pillow: frozenset[str] = frozenset()
    passed_over: dict[str, int] = field(default_factory=dict)
    root: str | None = None
    folder: str | None = None
    lengths: list[int] = field(default_factory=list)

    @property
    def manifest(self) -> Manifest:
        """What there is to compare with the files of another time (made anew by each call)."""
        names = self.paths
        if self.folder is not None:
            # As they were joined: relpath would take seconds for a million of them.
            names = [path.removeprefix(self.folder + os.sep) for path in names]
        root = None if self.name.startswith(_BUILTIN) else self.root
        return Manifest(self.name, root, names, self.lengths or [0] * len(names))

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
    spec: Path | str,
    split: str = "train",
    cache_dir: Path | str | None = None,
    *,
    on_bad_image: OnBadImage = "skip",
    modality: Modality = "image",
    max_pixels: int | None = None,
) -> ImageDataset:
    """Open a folder of images or of videos, or a built-in data set.

    Where FOLDER/train and FOLDER/test (or FOLDER/val) exist, ``split`` picks among them; any other
    folder is one training split. Other usual names of splits count too (training, testing, eval,
    evaluation, valid, validation, dev), in any case. Files are searched for at any depth, by
    extension (images: jpg, jpeg, jpe, jfif, png, webp, bmp, tif, tiff, gif, ppm, pgm, pbm, pnm,
    avif; videos: mp4, m4v, mov, mkv, webm, avi; in any case); hidden files and folders are passed
    over, and so are the folders of runs. Links are followed, but not to a folder around them.
    Files are labelled by first-level sub-folder if every file lies in one and there are at least
    two, else unlabelled. Every file gets a quick check: of its header and end mark, or its index.

    Args:
        spec: a folder (text or a pathlib.Path), or ``builtin:NAME`` (see ``builtin``).
        split: "train", "test" or "val".
        cache_dir: for the results of the checks and the files of built-in sets; None is
            $SSLFAST_CACHE, $XDG_CACHE_HOME/sslfast or ~/.cache/sslfast.
        on_bad_image: "skip" leaves bad files out, counts them and names each in the log; "raise"
            stops; so for videos.
        modality: "image", or "video", which gives a VideoDataset. Files of the other kind are
            passed over.
        max_pixels: the largest image, or frame, that is read: the product of height and width, by
            its header. A small file can claim any size. None is $SSLFAST_MAX_PIXELS or 178,956,970,
            where Pillow stops too.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: an empty name, no images or videos, none that is good, no such split, several
            folders for a split, files beside the splits, an unknown built-in set, one of the other
            kind, or a bad file with ``on_bad_image="raise"``.
        MissingExtra: PyAV is not installed, which reads videos, or Pillow, where there are GIF, PPM
            or AVIF files.
    """
    spec = str(spec)
    if not spec:
        raise ValueError(
            "the name of the data is empty: give a folder of images or videos ('.' is the one you "
            "are in), or builtin:NAME for a built-in set"
        )
    check_policy(on_bad_image)
    if modality not in _EXTENSIONS:
        raise ValueError(f"modality is one of {sorted(_EXTENSIONS)}; got '{modality}'")
    if modality == "video":
        videos.av()  # or say at once that it is missing
    if split not in SERVES:
        raise ValueError(f"split is one of {sorted(SERVES)}; got '{split}'")
    cache = cache_folder(cache_dir)
    if spec.startswith(_BUILTIN):
        root = builtin_folder(spec.removeprefix(_BUILTIN), cache)
    else:
        root = _absolute(spec)
    folder, classes = _choose(root, split, modality)
    found = find_files(folder, _EXTENSIONS[modality])
    if not found.files:
        raise ValueError(_nothing_found(folder, found, modality))
    paths = [os.path.join(folder, name) for name in found.files]

    look = videos.check_video if modality == "video" else None
    verdicts = check_files(paths, str(folder), cache, look=look)
    limit = _max_pixels(max_pixels)
    reasons = [verdict.reason or _too_large(verdict, limit) for verdict in verdicts]
    skipped = [(path, why) for path, why in zip(paths, reasons, strict=True) if why is not None]
    _report(folder, found, skipped, on_bad_image, modality)

    good = [i for i, why in enumerate(reasons) if why is None]
    labels = _labels(found.files, classes)
    dataset = ImageDataset(
        name=spec,
        paths=[paths[i] for i in good],
        labels=None if labels is None else [labels[i] for i in good],
        classes=None if labels is None else classes,
        skipped=found.unreadable + skipped,
        passed_over=dict(found.passed_over),
        sizes=[(verdicts[i].height, verdicts[i].width) for i in good],
        by_pillow=frozenset(paths[i] for i in good if verdicts[i].by_pillow),
        root=str(root),
        folder=str(folder),
        lengths=[verdicts[i].length for i in good],
    )
    if modality == "image":
        return dataset
    return VideoDataset(**vars(dataset), frames=[verdicts[i].frames for i in good])


def check_policy(on_bad_image: str) -> None:
    """Raise ValueError unless it is one of OnBadImage."""
    if on_bad_image not in get_args(OnBadImage):
        raise ValueError(f"on_bad_image is 'skip' or 'raise'; got '{on_bad_image}'")


def has_split(spec: str, split: str, modality: Modality = "image") -> bool:
    """Whether ``open_dataset`` finds such a split."""
    if spec.startswith(_BUILTIN):
        return True
    splits = split_folders(_absolute(spec), _EXTENSIONS[modality])
    return any(name in splits for name in SERVES[split])


def _absolute(spec: str) -> Path:
    """The folder of a name, without "..", which a run remembers."""
    return Path(os.path.abspath(Path(spec).expanduser()))


def _choose(root: Path, split: str, modality: Modality) -> tuple[Path, list[str]]:
    """The folder of a split, and the names of the first-level sub-folders of all splits."""
    splits = split_folders(root, _EXTENSIONS[modality])
    folder = next((splits[name] for name in SERVES[split] if name in splits), None)
    if folder is None:
        if splits or split != "train":
            raise ValueError(
                f"{root} has no '{split}' split: that takes {root / 'train'} and {root / split}"
            )
        folder, splits = root, {"train": root}
    # Classes of all splits together: a label means the same in each.
    return folder, sorted({name for top in splits.values() for name in sub_folders(top)})


def _nothing_found(folder: Path, found: Found, modality: Modality) -> str:
    ends = " ".join(_EXTENSIONS[modality])
    message = f"no {modality}s in {folder}: no file ends in one of {ends}"
    for other, extensions in _EXTENSIONS.items():
        count = sum(found.passed_over[extension] for extension in extensions)
        if count:
            message += (
                f". It holds {count} {other}s: for these, choose a method and a recipe that learn "
                f'from {other}s (in Python: modality="{other}")'
            )
    for path, reason in found.unreadable:
        message += f". {path} cannot be read: {reason}"
    return message


def _labels(found: list[str], classes: list[str]) -> list[int] | None:
    tops = [name.split(os.sep, 1)[0] if os.sep in name else None for name in found]
    if None in tops or len(classes) < 2:
        return None
    number = {name: i for i, name in enumerate(classes)}
    return [number[top] for top in tops if top is not None]


def _max_pixels(given: int | None) -> int:
    asked = os.environ.get("SSLFAST_MAX_PIXELS") if given is None else str(given)
    if not asked:
        return MAX_PIXELS
    if not asked.isdecimal() or int(asked) < 1:
        raise ValueError(f"max_pixels (SSLFAST_MAX_PIXELS) is a number of pixels; got '{asked}'")
    return int(asked)


def _too_large(seen: Verdict, limit: int) -> str | None:
    if seen.height * seen.width <= limit:
        return None
    return (
        f"{seen.height:,} x {seen.width:,} pixels, more than {limit:,} "
        "(SSLFAST_MAX_PIXELS sets the limit)"
    )


def _report(
    folder: Path,
    found: Found,
    skipped: list[tuple[str, str]],
    on_bad_image: OnBadImage,
    modality: Modality,
) -> None:
    """Say what was left out, or raise."""
    if found.passed_over:
        kinds = sorted(found.passed_over.items(), key=lambda item: (-item[1], item[0]))
        what = ", ".join(f"{count} {kind}" for kind, count in kinds[:10])
        more = f" and {len(kinds) - 10} kinds more" if len(kinds) > 10 else ""
        logger.info("passed over in %s: %s%s", folder, what, more)
    bad = [("folder", path, why) for path, why in found.unreadable]
    bad += [(modality, path, why) for path, why in skipped]
    if bad and on_bad_image == "raise":
        what, path, reason = bad[0]
        more = f" ({len(bad) - 1} more bad files)" if len(bad) > 1 else ""
        raise ValueError(f"unreadable {what}: {path}: {reason}{more}")
    for what, path, reason in bad:
        logger.warning("skipping unreadable %s %s: %s", what, path, reason)
    total = len(found.files)
    if skipped:
        logger.warning("skipped %d of %d %ss as unreadable", len(skipped), total, modality)
    if len(skipped) == total:
        path, reason = skipped[0]
        raise ValueError(
            f"none of the {total} {modality}s is readable; the first, {path}: {reason}"
        )
