"""What a source of data is, and how one is found by what the data is called."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

from sslfast.data.registry import Registry
from sslfast.data.sources.manifest import Manifest

OnBadImage = Literal["skip", "raise"]


@runtime_checkable
class Source(Protocol):
    """Samples by number, of any kind of data. A sample's number is its id, which keys all draws.

    An executor of the source's modality makes views of its samples; it may know the class of the
    source and read it in a faster way (DALI takes the paths of an ``ImageDataset``).
    """

    @property
    def modality(self) -> str:
        """The kind of data: "image", "video", or any other word that an executor goes by."""
        ...

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes; None where there are no labels, or these have no names."""
        ...

    @property
    def manifest(self) -> Manifest:
        """What the contents go by: a resumed run compares its ``fingerprint``."""
        ...

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def read(self, i: int) -> Any:
        """Sample ``i``: the bytes of a file, an array, a tensor, whatever the executor takes."""
        ...

    def label(self, i: int) -> int | None:
        """The class of sample ``i``; None where there are no labels."""
        ...

    def sample_name(self, i: int) -> str:
        """What sample ``i`` is called in the log: a path, a line of a file."""
        ...


@dataclass(frozen=True)
class Request:
    """The arguments of ``sslfast.data.open_dataset``.

    Attributes:
        spec: what the data is called: a folder, builtin:NAME, or what another source goes by.
        split: "train", "test" or "val".
        modality: the kind of data.
        cache: the cache folder.
        on_bad_image: what to do with bad samples.
        max_pixels: of an image, or of a frame; None: the usual limit.
    """

    spec: str
    split: str
    modality: str
    cache: Path
    on_bad_image: OnBadImage = "skip"
    max_pixels: int | None = None


class Opener(ABC):
    """One kind of source: a class in a file of this package, with an instance in ``OPENERS``.

    Class attributes:
        priority: the larger is asked first; folders, which take any name, are asked last.
    """

    priority: ClassVar[int] = 10

    @abstractmethod
    def modalities(self) -> list[str]:
        """The kinds of data that it opens."""

    @abstractmethod
    def claims(self, spec: str) -> bool:
        """Whether data of that name is for this one, from the name alone."""

    @abstractmethod
    def open(self, request: Request) -> Source:
        """Open it; ValueError or OSError where that cannot be."""

    @abstractmethod
    def has_split(self, spec: str, split: str, modality: str) -> bool:
        """Whether ``open`` finds such a split."""


OPENERS: Registry[Opener] = Registry("sslfast.data.sources", "kind of source")


def opener(spec: str, modality: str) -> Opener:
    """The one that opens data of that name and kind.

    Raises:
        ValueError: there is none.
    """
    openers = sorted(OPENERS.all().values(), key=lambda one: -one.priority)
    for one in openers:
        if modality in one.modalities() and one.claims(spec):
            return one
    known = sorted({name for one in openers for name in one.modalities()})
    if modality not in known:
        raise ValueError(f"modality must be one of {', '.join(known)}, got '{modality}'")
    raise ValueError(f"no source of modality '{modality}' goes by the name '{spec}'")


def check_policy(on_bad_image: str) -> None:
    """Raise ValueError unless it is one of OnBadImage."""
    if on_bad_image not in get_args(OnBadImage):
        raise ValueError(f"on_bad_image is 'skip' or 'raise'; got '{on_bad_image}'")
