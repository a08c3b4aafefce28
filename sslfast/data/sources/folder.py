"""Folders of files as sources: search, labels, splits, and a quick look at every file."""

import logging
import os
from pathlib import Path

from sslfast.data.sources.check import Verdict, check_files
from sslfast.data.sources.files import KINDS
from sslfast.data.sources.source import OPENERS, OnBadImage, Opener, Request, Source
from sslfast.data.sources.splits import SERVES, split_folders
from sslfast.data.sources.walk import Found, find_files, sub_folders

logger = logging.getLogger("sslfast")

MAX_PIXELS = 178_956_970  # Pillow's: an image of 3 bytes a pixel then takes half a gigabyte


class FolderOpener(Opener):
    """Any name is that of a folder, unless another opener claims it."""

    priority = 0

    def modalities(self) -> list[str]:
        """Those that come in files."""
        return KINDS.names()

    def claims(self, spec: str) -> bool:
        """Any name."""
        return True

    def open(self, request: Request) -> Source:
        """Open the folder of that name."""
        return open_folder(_absolute(request.spec), request)

    def has_split(self, spec: str, split: str, modality: str) -> bool:
        """Whether the folder has it."""
        splits = split_folders(_absolute(spec), KINDS.get(modality).extensions)
        return any(name in splits for name in SERVES[split])


OPENERS.add("folder", FolderOpener())


def open_folder(root: Path, request: Request) -> Source:
    """The readable files of a split of a folder: see ``open_dataset``."""
    modality, kind = request.modality, KINDS.get(request.modality)
    if kind.ready is not None:
        kind.ready()  # or say at once that it is missing
    folder, classes = _choose(root, request.split, kind.extensions)
    found = find_files(folder, kind.extensions)
    if not found.files:
        raise ValueError(_nothing_found(folder, found, modality))
    paths = [os.path.join(folder, name) for name in found.files]

    verdicts = check_files(paths, str(folder), request.cache, look=kind.look)
    limit = _max_pixels(request.max_pixels)
    reasons = [verdict.reason or _too_large(verdict, limit) for verdict in verdicts]
    skipped = [(path, why) for path, why in zip(paths, reasons, strict=True) if why is not None]
    _report(folder, found, skipped, request.on_bad_image, modality)

    good = [i for i, why in enumerate(reasons) if why is None]
    labels = _labels(found.files, classes)
    fields = {
        "name": request.spec,
        "paths": [paths[i] for i in good],
        "labels": None if labels is None else [labels[i] for i in good],
        "classes": None if labels is None else classes,
        "skipped": found.unreadable + skipped,
        "passed_over": dict(found.passed_over),
        "sizes": [(verdicts[i].height, verdicts[i].width) for i in good],
        "root": str(root),
        "folder": str(folder),
        "lengths": [verdicts[i].length for i in good],
    }
    return kind.make(fields, [verdicts[i] for i in good])


def _absolute(spec: str) -> Path:
    """The folder of a name, without "..", which a run remembers."""
    return Path(os.path.abspath(Path(spec).expanduser()))


def _choose(root: Path, split: str, extensions: tuple[str, ...]) -> tuple[Path, list[str]]:
    """The folder of a split, and the names of the first-level sub-folders of all splits."""
    splits = split_folders(root, extensions)
    folder = next((splits[name] for name in SERVES[split] if name in splits), None)
    if folder is None:
        if splits or split != "train":
            raise ValueError(
                f"{root} has no '{split}' split: that takes {root / 'train'} and {root / split}, "
                "each with a folder per class where labels are needed"
            )
        folder, splits = root, {"train": root}
    # Classes of all splits together: a label means the same in each.
    return folder, sorted({name for top in splits.values() for name in sub_folders(top)})


def _nothing_found(folder: Path, found: Found, modality: str) -> str:
    ends = " ".join(KINDS.get(modality).extensions)
    message = f"no {modality}s in {folder}: no file ends in one of {ends}"
    for other, kind in KINDS.all().items():
        count = sum(found.passed_over[extension] for extension in kind.extensions)
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
    modality: str,
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
