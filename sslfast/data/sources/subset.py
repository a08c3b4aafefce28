"""Some samples of a source, as a source."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sslfast.data.sources.images import ImageDataset
from sslfast.data.sources.manifest import Manifest
from sslfast.data.sources.source import Source


def subset(source: Source, ids: Sequence[int]) -> Source:
    """Some samples of a source, in this order: number ``i`` of it is ``ids[i]`` of the source.

    Files stay files, which executors read in a faster way than other samples.

    Args:
        source: of any kind of data.
        ids: numbers of samples.
    """
    if not isinstance(source, ImageDataset):
        return Subset(source, ids)
    lists: dict[str, Any] = {name: getattr(source, name) for name in source.per_file}
    chosen: dict[str, Any] = {k: [v[i] for i in ids] for k, v in lists.items() if v}
    return replace(source, **chosen)


class Subset:
    """Some samples of any source; see ``subset``."""

    def __init__(self, source: Source, ids: Sequence[int]) -> None:
        self.source, self.ids = source, list(ids)
        self.modality, self.classes = source.modality, source.classes
        sizes = getattr(source, "sizes", None)
        self.sizes = None if sizes is None else [sizes[i] for i in self.ids]

    @property
    def manifest(self) -> Manifest:
        """That of the whole, and which of it."""
        whole = self.source.manifest
        contents = f"{whole.contents or ''} {self.ids}"
        return Manifest(whole.given, whole.root, whole.names, whole.lengths, contents)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> Any:
        """Sample ``ids[i]`` of the source."""
        return self.source.read(self.ids[i])

    def label(self, i: int) -> int | None:
        """Its class."""
        return self.source.label(self.ids[i])

    def sample_name(self, i: int) -> str:
        """Its name."""
        return self.source.sample_name(self.ids[i])
