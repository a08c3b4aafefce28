"""Which versions of its own files this sslfast reads."""

from typing import Any


def check_version(
    source: str, version: Any, newest: int, error: type[Exception] = ValueError
) -> None:
    """Raise where a file says that it is of a version which this sslfast does not read.

    Args:
        source: the file, for the message.
        version: what it says; None: nothing.
        newest: the newest that is read; all from 1 on are.
        error: what is raised.
    """
    if not isinstance(version, int) or version < 1:
        raise error(
            f"{source} has schema_version {version!r}, which is not a version: this sslfast reads "
            f"{newest} at most"
        )
    if version > newest:
        raise error(
            f"{source} has schema_version {version}, but this sslfast reads {newest} at most: it "
            "was written by a newer one. Upgrade with: pip install --upgrade sslfast"
        )
