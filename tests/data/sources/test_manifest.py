"""What a run remembers of its files."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslfast.data.sources.manifest import Manifest

NAMES = ["a/1.jpg", "a/2.jpg", "b/\udcff.jpg"]  # the last is no UTF-8


def manifest(names=NAMES, lengths=(3, 5, 7), root="/data/x"):
    return Manifest("x", root, list(names), list(lengths))


def test_the_fingerprint_is_of_names_sizes_and_order_and_not_of_the_place():
    assert manifest().fingerprint == manifest(root="/elsewhere").fingerprint
    others = [manifest(lengths=(3, 5, 8)), manifest(names=[*NAMES[:2], "b/3.jpg"])]
    others.append(manifest(names=NAMES[::-1], lengths=(7, 5, 3)))
    assert len({m.fingerprint for m in [manifest(), *others]}) == 4


def test_changes_in_words():
    now = manifest(names=["a/1.jpg", "a/3.jpg", "a/4.jpg", "b/\udcff.jpg"], lengths=(4, 1, 1, 7))
    assert manifest().changes(now) == (
        "1 file is gone (the first: 'a/2.jpg'), 2 files are new (the first: 'a/3.jpg'), "
        "1 file is of another size (the first: 'a/1.jpg')"
    )
    assert "another order" in manifest().changes(manifest(NAMES[::-1], (7, 5, 3)))


def test_contents_that_names_and_sizes_do_not_tell():
    one, two = (Manifest("array", None, ["x"], [8], contents) for contents in ("a1", "b2"))
    assert len({m.fingerprint for m in (one, two, Manifest("array", None, ["x"], [8]))}) == 3
    assert one.changes(two) == "its contents are others"
    assert Manifest.from_bytes(one.to_bytes()) == one
    assert b"contents" not in gzip.decompress(Manifest("array", None, ["x"], [8]).to_bytes())


def test_where_to_find_the_data():
    assert manifest().place == "/data/x"
    assert Manifest("builtin:photos", None, [], []).place == "builtin:photos"


@given(st.lists(st.tuples(st.text(), st.integers(0)), max_size=5))
def test_bytes_hold_all(files):
    names = [
        name.encode(errors="surrogatepass").decode(errors="surrogateescape") for name, _ in files
    ]
    kept = manifest(names, [length for _, length in files])
    assert kept.fingerprint  # is no part of what is written
    again = Manifest.from_bytes(kept.to_bytes())
    assert again == kept
    assert again.to_bytes() == kept.to_bytes()


@pytest.mark.parametrize("data", [b"", b"no gzip", manifest().to_bytes()[:-9]])
def test_damage_is_said(data):
    with pytest.raises(ValueError, match="no list of files"):
        Manifest.from_bytes(data)
