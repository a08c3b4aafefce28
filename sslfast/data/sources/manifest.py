"""Which files a run learns from, so that a resumed one can tell whether they are still the same."""

import gzip
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Manifest:
    """What a data set consists of: files in the order of their sample ids, or other parts.

    Attributes:
        given: the data as it was asked for: a folder as somebody spelled it, or builtin:NAME.
        root: the folder that this was, absolute; None for a built-in set.
        names: paths below the folder, where the position is the sample id; or of shards, tables and
            whatever else a source is made of.
        lengths: bytes of each.
        contents: a digest, of sources whose names and lengths do not tell one from another (arrays
            in memory); None: they do.
    """

    given: str
    root: str | None
    names: list[str]
    lengths: list[int]
    contents: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """A digest of names, lengths and contents, wherever the folder is."""
        digest = hashlib.sha256()
        for name, length in zip(self.names, self.lengths, strict=True):
            digest.update(b"%s\0%d\0" % (os.fsencode(name), length))
        if self.contents is not None:
            digest.update(self.contents.encode())
        return digest.hexdigest()[:32]

    @property
    def place(self) -> str:
        """Where the data can be opened again, from any working directory."""
        return self.given if self.root is None else self.root

    def changes(self, now: "Manifest") -> str:
        """What became of the files, in words, such as "2 files are gone (the first: a.jpg)"."""
        before = dict(zip(self.names, self.lengths, strict=True))
        after = dict(zip(now.names, now.lengths, strict=True))
        kinds = {
            "gone": [name for name in before if name not in after],
            "new": [name for name in after if name not in before],
            "of another size": [n for n in before if after.get(n, before[n]) != before[n]],
        }
        parts = [
            f"{len(names)} file{'s are' if len(names) > 1 else ' is'} {kind} "
            f"(the first: {names[0]!r})"
            for kind, names in kinds.items()
            if names
        ]
        return ", ".join(parts) or (
            "its files are in another order"
            if self.contents == now.contents
            else "its contents are others"
        )

    def to_bytes(self) -> bytes:
        """As compressed JSON; the same bytes for the same manifest."""
        plain = {**vars(self), "names": [os.fsencode(n).decode("latin-1") for n in self.names]}
        plain.pop("fingerprint", None)
        if self.contents is None:  # as earlier versions wrote it
            del plain["contents"]
        return gzip.compress(json.dumps(plain).encode(), mtime=0)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Read back ``to_bytes``.

        Raises:
            ValueError: the bytes are damaged.
        """
        try:
            plain: dict[str, Any] = json.loads(gzip.decompress(data))
            plain["names"] = [os.fsdecode(name.encode("latin-1")) for name in plain["names"]]
            return cls(**plain)
        except (OSError, EOFError, TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"no list of files: {error}") from error
