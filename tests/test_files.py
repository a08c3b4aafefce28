"""Files appear whole or not at all."""

import os
from pathlib import Path

import pytest

from sslfast._files import remove_leftovers, replacing


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def stopped() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_at_a_time_are_not_in_each_others_way(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path, shared=True) as one, replacing(path, shared=True) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # whose name changed last
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_reach_the_disk_before_the_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    done = []
    replace, fsync = os.replace, os.fsync

    def seen_fsync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def seen_replace(source: Path, target: Path) -> None:
        done.append(target)
        replace(source, target)

    monkeypatch.setattr("os.fsync", seen_fsync)
    monkeypatch.setattr("os.replace", seen_replace)
    with replacing(path, sync=True) as temporary:
        temporary.write_text("new")
    assert done == [temporary, path, tmp_path]


def test_leftovers_go_files_and_folders(tmp_path: Path) -> None:
    for shared in (False, True):
        with replacing(tmp_path / "file", shared=shared) as temporary:
            temporary.touch()
            left = temporary.name
        (tmp_path / left).touch()
    with replacing(tmp_path / "set") as temporary:
        temporary.mkdir()
    temporary.mkdir()
    (temporary / "half").touch()
    (tmp_path / ".mine.tmp").touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "set", ".mine.tmp"}
