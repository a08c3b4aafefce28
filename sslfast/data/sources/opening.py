"""Data by its name: a folder, a built-in set, or whatever a file of this package opens."""

from pathlib import Path
from typing import Literal, overload

from sslfast._arguments import checked
from sslfast._files import cache_folder
from sslfast.data.sources.images import ImageDataset
from sslfast.data.sources.source import OnBadImage, Request, Source, check_policy, opener
from sslfast.data.sources.splits import SERVES
from sslfast.data.sources.videos import VideoDataset


@overload
def open_dataset(
    spec: Path | str,
    split: str = "train",
    cache_dir: Path | str | None = None,
    *,
    on_bad_image: OnBadImage = "skip",
    modality: Literal["image"] = "image",
    max_pixels: int | None = None,
) -> ImageDataset: ...


@overload
def open_dataset(
    spec: Path | str,
    split: str = "train",
    cache_dir: Path | str | None = None,
    *,
    on_bad_image: OnBadImage = "skip",
    modality: Literal["video"],
    max_pixels: int | None = None,
) -> VideoDataset: ...


@overload
def open_dataset(
    spec: Path | str,
    split: str = "train",
    cache_dir: Path | str | None = None,
    *,
    on_bad_image: OnBadImage = "skip",
    modality: str,
    max_pixels: int | None = None,
) -> Source: ...


@checked
def open_dataset(
    spec: Path | str,
    split: str = "train",
    cache_dir: Path | str | None = None,
    *,
    on_bad_image: OnBadImage = "skip",
    modality: str = "image",
    max_pixels: int | None = None,
) -> Source:
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
        modality: "image", or "video", which gives a VideoDataset, or that of another source. Files
            of another kind are passed over.
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
    found = opener(spec, modality)
    if split not in SERVES:
        raise ValueError(f"split is one of {sorted(SERVES)}; got '{split}'")
    cache = cache_folder(cache_dir)
    return found.open(Request(spec, split, modality, cache, on_bad_image, max_pixels))


def has_split(spec: str, split: str, modality: str = "image") -> bool:
    """Whether ``open_dataset`` finds such a split."""
    return opener(spec, modality).has_split(spec, split, modality)
