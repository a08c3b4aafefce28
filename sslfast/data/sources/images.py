"""Image files as a source."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from sslfast.data.sources.check import Verdict
from sslfast.data.sources.files import KINDS, FileKind
from sslfast.data.sources.manifest import Manifest
from sslfast.data.sources.walk import open_file

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".avif"),
)


@dataclass(frozen=True)
class ImageDataset:
    """The readable images of a data set: a ``Source`` of the modality "image".

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

    modality: ClassVar[str] = "image"
    # Fields with an entry for each file.
    per_file: ClassVar[tuple[str, ...]] = ("paths", "labels", "sizes", "lengths")

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

    @cached_property
    def manifest(self) -> Manifest:
        """What there is to compare with the files of another time."""
        names = self.paths
        if self.folder is not None:
            # As they were joined: relpath would take seconds for a million of them.
            names = [path.removeprefix(self.folder + os.sep) for path in names]
        root = None if self.name.startswith("builtin:") else self.root
        return Manifest(self.name, root, names, self.lengths or [0] * len(names))

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> bytes:
        """The bytes of file ``i``."""
        with open_file(self.paths[i]) as file:
            return file.read()

    def label(self, i: int) -> int | None:
        """The class of file ``i``."""
        return None if self.labels is None else self.labels[i]

    def sample_name(self, i: int) -> str:
        """The path of file ``i``."""
        return self.paths[i]


def _dataset(fields: dict[str, Any], verdicts: list[Verdict]) -> ImageDataset:
    by_pillow = [one.by_pillow for one in verdicts]
    paths = zip(fields["paths"], by_pillow, strict=True)
    return ImageDataset(**fields, by_pillow=frozenset(path for path, by in paths if by))


KINDS.add("image", FileKind(EXTENSIONS, _dataset))
