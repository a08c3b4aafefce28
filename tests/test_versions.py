"""All files of sslfast are refused in the same words."""

import re

import pytest

from sslfast._versions import check_version


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            3,
            "a.yaml has schema_version 3, but this sslfast reads 2 at most: it was written by a "
            "newer one. Upgrade with: pip install --upgrade sslfast",
        ),
        (0, "a.yaml has schema_version 0, which is not a version: this sslfast reads 2 at most"),
        ("1", "a.yaml has schema_version '1', which is not a version: this sslfast reads 2"),
        (None, "a.yaml has schema_version None, which is not a version: this sslfast reads 2"),
    ],
)
def test_what_this_sslfast_does_not_read(version: object, message: str) -> None:
    with pytest.raises(KeyError, match=re.escape(message)):
        check_version("a.yaml", version, 2, KeyError)


def test_what_it_reads() -> None:
    check_version("a.yaml", 1, 2)
    check_version("a.yaml", 2, 2)
