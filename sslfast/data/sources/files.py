"""Which files of a folder are samples: one kind for each modality that comes in files."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sslfast.data.registry import Registry
from sslfast.data.sources.check import Verdict
from sslfast.data.sources.source import Source


@dataclass(frozen=True)
class FileKind:
    """Files of one modality. A file in this package adds one to ``KINDS``.

    Attributes:
        extensions: of its files, in lower case.
        make: the source, of the fields of an ``ImageDataset`` but by_pillow, and what the look at
            each of its files showed.
        look: at one file (see ``check_files``); None: as at an image.
        ready: raises MissingExtra where what reads such files is not installed.
    """

    extensions: tuple[str, ...]
    make: Callable[[dict[str, Any], list[Verdict]], Source]
    look: Callable[[str], Verdict] | None = None
    ready: Callable[[], object] | None = None


KINDS: Registry[FileKind] = Registry("sslfast.data.sources", "modality")
