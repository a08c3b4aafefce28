"""The walk of a folder: links, pipes, what cannot be read, what is passed over."""

import logging
import os

import pytest
from PIL import Image

from sslfast.data import open_dataset
from sslfast.data.sources import walk as module
from sslfast.data.sources.walk import find_files, open_file

PNG = (".png",)


@pytest.fixture
def tree(tmp_path):
    """A folder with a/1.png and b/c/2.png."""
    root = tmp_path / "tree"
    for name in ("a/1.png", "b/c/2.png"):
        (root / name).parent.mkdir(parents=True)
        Image.new("RGB", (5, 3)).save(root / name)
    return root


def test_a_folder_is_found_by_every_link_to_it(tree, tmp_path):
    for name in ("z", "k"):
        (tree / name).symlink_to(tree / "b")
    (tmp_path / "outside").mkdir()
    Image.new("RGB", (5, 3)).save(tmp_path / "outside" / "3.PNG")
    (tree / "out").symlink_to("../outside")
    assert find_files(tree, PNG).files == [
        "a/1.png",
        "b/c/2.png",
        "k/c/2.png",
        "out/3.PNG",
        "z/c/2.png",
    ]
    assert open_dataset(str(tree)).classes == ["a", "b", "k", "out", "z"]


def test_only_loops_are_broken(tree, tmp_path):
    (tree / "a" / "root").symlink_to("/")  # holds the link itself
    (tree / "a" / "up").symlink_to("..")
    (tree / "a" / "self").symlink_to(".")
    (tree / "a" / "other").symlink_to(tree / "b")
    (tree / "b" / "back").symlink_to(tree / "a")  # a loop of two, from either side
    found = find_files(tree, PNG)
    assert found.files == ["a/1.png", "a/other/c/2.png", "b/back/1.png", "b/c/2.png"]
    # root, up, self in a and in b/back; back in a/other, other in b/back
    assert found.passed_over == {"links to a folder around them": 8}
    (tmp_path / "link").symlink_to(tree)
    assert find_files(tmp_path / "link", PNG) == found


def test_links_that_multiply_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_VISITS", 30)
    for depth in range(20):  # a million ways through twenty pairs of links
        (tmp_path / f"{depth}").mkdir()
        for name in "xy":
            (tmp_path / f"{depth}" / name).symlink_to(tmp_path / f"{depth + 1}")
    (tmp_path / "20").mkdir()
    with pytest.raises(ValueError, match=r"links lead to .* more than 30 times"):
        find_files(tmp_path / "0", PNG)


@pytest.mark.parametrize("folder", ["/proc", "/dev"])
def test_the_system_is_no_data(tree, folder):
    if os.stat(folder).st_dev == os.stat("/").st_dev:
        pytest.skip(f"{folder} is no file system of its own here")
    (tree / "link").symlink_to(folder)
    found = find_files(tree, PNG)
    assert found.files == ["a/1.png", "b/c/2.png"]
    assert found.passed_over == {"folders of the system": 1}
    with pytest.raises(ValueError, match=r"no images in"):
        open_dataset(folder)


def test_the_whole_machine_is_refused():
    with pytest.raises(ValueError, match="whole machine"):
        open_dataset("/")


def test_pipes_and_dead_links_are_named_and_hold_up_nothing(tree):
    os.mkfifo(tree / "a" / "pipe.png")
    (tree / "a" / "zero.png").symlink_to("/dev/zero")
    (tree / "a" / "dead.png").symlink_to("nowhere")
    (tree / "a" / "ring.png").symlink_to("ring.png")
    dataset = open_dataset(str(tree))
    assert len(dataset) == 2
    reasons = {os.path.basename(path): reason for path, reason in dataset.skipped}
    assert sorted(reasons) == ["dead.png", "pipe.png", "ring.png", "zero.png"]
    assert "not a regular file" in reasons["pipe.png"]
    assert "not a regular file" in reasons["zero.png"]
    assert "No such file" in reasons["dead.png"]
    assert "symbolic links" in reasons["ring.png"]
    with pytest.raises(OSError, match="not a regular file"):
        open_file(str(tree / "a" / "pipe.png"))  # as where a file turns into one


def test_a_folder_that_cannot_be_listed_is_named(tree, monkeypatch, caplog):
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("b/c"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(module.os, "scandir", scandir)
    with caplog.at_level(logging.WARNING, "sslfast"):
        dataset = open_dataset(str(tree))
    assert dataset.skipped == [(str(tree / "b" / "c"), "Permission denied")]
    assert "skipping unreadable folder" in caplog.text
    with pytest.raises(ValueError, match=r"unreadable folder: .*b/c: Permission denied"):
        open_dataset(str(tree), on_bad_image="raise")
    with pytest.raises(ValueError, match=r"no images in .*b/c cannot be read: Permission denied"):
        open_dataset(str(tree / "b"))


def test_paths_too_long_for_the_system_are_named(tree, monkeypatch):
    monkeypatch.chdir(tree / "a")
    while len(os.getcwd()) < 4090:
        name = "d" * min(200, 4094 - len(os.getcwd()))
        os.mkdir(name)
        os.chdir(name)
    Image.new("RGB", (5, 3)).save("deep.png")
    os.mkdir("deeper")
    dataset = open_dataset(str(tree))
    assert len(dataset) == 2
    assert [(os.path.basename(path), reason) for path, reason in dataset.skipped] == [
        ("deeper", "File name too long"),
        ("deep.png", "File name too long"),
    ]


def test_what_is_passed_over_is_counted(tree, caplog):
    for name in ("a/x.heic", "a/y.HEIC", "b/notes.txt", "b/README", ".git/HEAD", "a/._1.png"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text("")
    with caplog.at_level(logging.INFO, "sslfast"):
        dataset = open_dataset(str(tree))
    assert dataset.passed_over == {".heic": 2, ".txt": 1, "without extension": 1, "hidden": 2}
    assert "2 .heic, 2 hidden, 1 .txt, 1 without extension" in caplog.text


@pytest.mark.parametrize("run", ["", "run"])
def test_the_pictures_of_a_run_are_no_data(tree, run):
    folder = tree / run
    folder.mkdir(exist_ok=True)
    for name in (".lock", "config.yaml", "metrics.jsonl"):
        (folder / name).write_text("")
    for name in ("loss.png", "map.png", "rejection.png", "views.png"):
        Image.new("RGB", (5, 3)).save(folder / name)
    if run:
        Image.new("RGB", (5, 3)).save(folder / "preview.png")
    dataset = open_dataset(str(tree))
    assert [os.path.relpath(path, tree) for path in dataset.paths] == ["a/1.png", "b/c/2.png"]
    assert dataset.classes == ["a", "b"]
