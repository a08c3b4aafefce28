"""YAML files, read within bounds: a configuration is small, and a hostile one must not hang."""

import os
import stat
from typing import Any

from sslfast._extras import require

MOST_BYTES, MOST_ALIASES = 1 << 20, 32
DEEPEST = 32  # lists and mappings in each other


def load(path: str) -> Any:
    """The plain values in a YAML file.

    Raises:
        ValueError: it cannot be read, is no ordinary file or no YAML, or is too large: in bytes, in
            depth or in aliases, which repeat what an anchor names; or holds itself by an alias.
    """
    yaml = require("yaml", extra="train", purpose="reading a YAML configuration")
    try:
        text = _content(path).decode()
        _check_size(text, yaml, path)
        return yaml.safe_load(text)
    except OSError as error:
        raise ValueError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None


def _content(path: str) -> bytes:
    # A pipe without a writer would block, and a device may never end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"cannot read the configuration {path}: it is no ordinary file")
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path} is no configuration: it has more than {MOST_BYTES} bytes")
    return content


def _check_size(text: str, yaml: Any, path: str) -> None:
    """Raise ValueError for what would take much memory or time to build, or be without end."""
    aliases = 0
    around: list[str | None] = []  # anchors of the lists and mappings that an event is in
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            around.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            around.pop()
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if event.anchor in around:
                raise ValueError(
                    f"{path} is no configuration: *{event.anchor} stands inside of what it names "
                    f"(&{event.anchor}), which has no end: write the values out"
                )
        if len(around) > DEEPEST or aliases > MOST_ALIASES:
            raise ValueError(
                f"{path} is no configuration: it nests values more than {DEEPEST} deep, or has "
                f"more than {MOST_ALIASES} aliases"
            )
