import errno
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import chelsea

from sslfast._files import cache_folder
from sslfast.data import builtin, open_dataset
from sslfast.data.sources import cache
from sslfast.data.sources.cache import make_folder, write_file


def test_photos_have_the_documented_counts():
    train, train_labels = builtin("photos", "train")
    test, test_labels = builtin("photos", "test")
    assert train.shape == (5706, 32, 32, 3)
    assert test.shape == (1919, 32, 32, 3)
    assert train.dtype == torch.uint8
    assert train_labels.dtype == torch.int64
    assert train_labels.bincount().tolist() == [600, 306, *[600] * 8]
    assert test_labels.bincount().tolist() == [200, 119, *[200] * 8]


def test_photo_patches_are_the_photograph_on_each_side_of_the_border():
    picture = torch.from_numpy(chelsea())  # 300 x 451: the border is at 315
    for split, left, right in (("train", 0, 315), ("test", 315, 451)):
        images, labels = builtin("photos", split)
        patches = images[labels == 1]
        columns = (right - left - 32) // 16 + 1
        rows = (300 - 32) // 16 + 1
        assert len(patches) == rows * columns
        for row, column in ((0, 0), (0, columns - 1), (rows - 1, 0), (7, 3)):
            y, x = 16 * row, left + 16 * column
            assert x + 32 <= right
            assert torch.equal(patches[row * columns + column], picture[y : y + 32, x : x + 32])


def test_mnist_is_stratified_and_disjoint():
    train, train_labels = builtin("mnist", "train")
    test, test_labels = builtin("mnist", "test")
    assert train.shape == (4000, 28, 28, 1)
    assert test.shape == (1000, 28, 28, 1)
    assert train_labels.bincount().tolist() == [400] * 10
    assert test_labels.bincount().tolist() == [100] * 10
    rows = {image.numpy().tobytes() for image in train}
    assert sum(image.numpy().tobytes() in rows for image in test) == 0
    # ones are thin, zeros are not: labels belong to their images
    ink = [train[train_labels == digit].float().mean() for digit in range(10)]
    assert int(np.argmin(ink)) == 1
    assert int(np.argmax(ink)) == 0


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown built-in data set 'photo'.*mean 'photos'"):
        builtin("photo")
    with pytest.raises(ValueError, match="unknown built-in"):
        open_dataset("builtin:cifar")
    with pytest.raises(ValueError, match="split"):
        builtin("photos", "val")


@pytest.mark.parametrize(("name", "suffix"), [("photos", ".jpg"), ("mnist", ".png")])
def test_files_are_the_same_images_in_the_same_order(name, suffix, cache):
    dataset = open_dataset(f"builtin:{name}", "test")
    images, labels = builtin(name, "test")
    assert dataset.labels == labels.tolist()
    assert dataset.skipped == []
    assert dataset.paths[0].startswith(str(cache))
    assert {Path(path).suffix for path in dataset.paths} == {suffix}
    for i in range(0, len(images), 97):
        with Image.open(dataset.paths[i]) as file:
            pixels = torch.from_numpy(np.array(file)).view(images[i].shape)
            if suffix == ".jpg":
                assert all(component[1:3] == (1, 1) for component in file.layer)  # 4:4:4
        error = (pixels.float() - images[i].float()).abs().mean()
        assert error == 0 if suffix == ".png" else error < 6


def test_mnist_files_need_no_writing_twice(cache):
    before = open_dataset("builtin:mnist")
    stamp = Path(before.paths[0]).stat().st_mtime_ns
    assert open_dataset("builtin:mnist") == before
    assert Path(before.paths[0]).stat().st_mtime_ns == stamp


def test_a_half_deleted_cache_is_filled_up(tmp_path, monkeypatch, caplog):
    images, labels = builtin("mnist", "test")
    few = {"train": (images[:3].numpy(), labels[:3].numpy())}
    few["test"] = (images[500:502].numpy(), labels[500:502].numpy())
    monkeypatch.setitem(sys.modules["sslfast.data.sources.builtin"]._READERS, "mnist", few.get)
    monkeypatch.setenv("SSLFAST_CACHE", str(tmp_path))
    before = open_dataset("builtin:mnist")
    kept, lost = (Path(path) for path in before.paths[:2])
    content, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    assert "not complete" not in caplog.text
    lost.unlink()
    shutil.rmtree(tmp_path / "builtin" / "mnist-v1" / "test")
    assert open_dataset("builtin:mnist").paths == before.paths
    assert "not complete" in caplog.text
    assert len(open_dataset("builtin:mnist", "test")) == 2
    assert lost.read_bytes() == content
    assert kept.stat().st_mtime_ns == stamp


def test_of_two_that_want_a_folder_one_makes_it(tmp_path):
    both_are_here = threading.Barrier(2)
    done = []
    filled = []

    def work(mark):
        def fill(folder):
            filled.append(mark)
            (folder / "a").write_text(mark)
            time.sleep(0.05)  # the other one waits in the meantime
            (folder / "b").write_text(mark)

        both_are_here.wait(10)
        done.append(make_folder(tmp_path / "set", fill))

    threads = [threading.Thread(target=work, args=(mark,)) for mark in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [tmp_path / "set"] * 2
    assert [(tmp_path / "set" / name).read_text() for name in "ab"] == filled * 2
    assert {path.name for path in tmp_path.iterdir()} == {"set", ".lock"}  # nothing left behind


def test_what_a_killed_process_left_is_removed(tmp_path):
    script = (
        "import os, runpy, sys; from pathlib import Path\n"
        "def fill(folder): (folder / 'half').touch(); os.kill(os.getpid(), 9)\n"
        "runpy.run_path(sys.argv[1])['make_folder'](Path(sys.argv[2]) / 'set', fill)"
    )
    killed = subprocess.run([sys.executable, "-c", script, cache.__file__, str(tmp_path)])
    assert killed.returncode == -9
    assert len(list(tmp_path.glob(".set*"))) == 1
    write_file(tmp_path / "file", b"other")
    assert {path.name for path in tmp_path.iterdir()} == {"file", ".lock"}


def test_a_failed_write_leaves_nothing(tmp_path):
    def fill(folder):
        (folder / "a").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_folder(tmp_path / "set", fill)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    write_file(tmp_path / "file", b"old")
    with pytest.raises(TypeError):
        write_file(tmp_path / "file", "not bytes")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"file", ".lock"}


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("SSLFAST_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder(tmp_path / "c") == tmp_path / "c"
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("SSLFAST_CACHE")
    assert cache_folder() == tmp_path / "b" / "sslfast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "sslfast"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", dict[int, object]().__getitem__)  # an unknown user
    with pytest.raises(ValueError, match=r"no home folder .HOME is not set.*set SSLFAST_CACHE"):
        cache_folder()


@pytest.mark.parametrize("name", ["a_file/x", "x" * 300])
def test_a_cache_that_cannot_be_made_is_named(tmp_path, monkeypatch, name):
    (tmp_path / "a_file").touch()
    monkeypatch.setenv("SSLFAST_CACHE", str(tmp_path / name))
    told = rf"sslfast's cache cannot be written .*: set SSLFAST_CACHE to another.*{name}"
    with pytest.raises(OSError, match=told):
        open_dataset("builtin:photos")


def test_errors_of_what_fills_the_cache_stay_as_they_are(tmp_path):
    def fill(folder: Path) -> None:
        (tmp_path / "package" / "photo.jpg").read_bytes()

    with pytest.raises(FileNotFoundError, match=r"\[Errno 2\] No such file or directory: .*/photo"):
        make_folder(tmp_path / "cache" / "set", fill)


def test_a_full_disk_is_said_to_be_the_caches(tmp_path):
    def fill(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        OSError, match=r"no room for sslfast's cache.* SSLFAST_CACHE.*/set'"
    ) as told:
        make_folder(tmp_path / "set", fill)
    assert told.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
