import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from sslfast.data import open_dataset
from sslfast.data.sources import check as check_module

pytestmark = pytest.mark.usefixtures("cache")


def names(dataset, root):
    return [os.path.relpath(path, root) for path in dataset.paths]


def save(picture, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **options)


def test_sub_folders_are_labels(folder):
    dataset = open_dataset(str(folder))
    assert len(dataset) == 40
    assert dataset.paths == sorted(dataset.paths)
    assert dataset.classes == ["even", "odd"]
    assert dataset.labels == [0] * 20 + [1] * 20
    assert dataset.sizes == [(32, 32)] * 40
    assert dataset.skipped == []
    assert open_dataset(str(folder)) == dataset


def test_one_loose_image_or_one_sub_folder_means_no_labels(folder, pictures):
    save(pictures[0], folder / "loose.png")
    dataset = open_dataset(str(folder))
    assert len(dataset) == 41
    assert dataset.labels is None
    assert dataset.classes is None
    assert open_dataset(str(folder / "even")).labels is None
    (folder / "only").mkdir()
    assert open_dataset(str(folder / "even")).labels is None


def test_depth_extensions_and_hidden_files(tmp_path, pictures):
    for name in ("a/x.JPG", "a/deep/er/y.JpEg", "b/z.png", "b/w.WEBP", "b/v.bmp", "c/u.Tiff"):
        save(pictures[0], tmp_path / name)
    for name in (".hidden/x.png", "a/.y.png"):
        save(pictures[0], tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    dataset = open_dataset(str(tmp_path))
    assert names(dataset, tmp_path) == [
        "a/deep/er/y.JpEg",
        "a/x.JPG",
        "b/v.bmp",
        "b/w.WEBP",
        "b/z.png",
        "c/u.Tiff",
    ]
    assert dataset.labels == [0, 0, 1, 1, 1, 2]
    assert dataset.sizes == [(32, 32)] * 6


def test_splits_share_their_classes(tmp_path, pictures):
    for name in ("train/a/1.png", "train/b/2.png", "train/c/3.png", "val/a/4.png", "val/c/5.png"):
        save(pictures[0], tmp_path / name)
    train, val = open_dataset(str(tmp_path)), open_dataset(str(tmp_path), "val")
    assert train.classes == val.classes == ["a", "b", "c"]
    assert train.labels == [0, 1, 2]
    assert val.labels == [0, 2]
    assert open_dataset(str(tmp_path), "test").paths == val.paths


def test_a_folder_without_splits_has_only_training_images(folder):
    with pytest.raises(ValueError, match=r"no 'test' split: that takes .*train and .*test, each"):
        open_dataset(str(folder), "test")
    with pytest.raises(ValueError, match="split is one of"):
        open_dataset(str(folder), "validation")


def test_missing_empty_and_wrong_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        open_dataset(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*empty.*\.jpg"):
        open_dataset(str(tmp_path / "empty"))
    (tmp_path / "file.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a file"):
        open_dataset(str(tmp_path / "file.jpg"))
    with pytest.raises(ValueError, match="the name of the data is empty: give a folder"):
        open_dataset("")
    with pytest.raises(ValueError, match="on_bad_image"):
        open_dataset(str(tmp_path), on_bad_image="ignore")


def test_bad_files_are_skipped_counted_and_named(folder, caplog):
    whole = (folder / "even" / "00.jpg").read_bytes()
    (folder / "even" / "cut.jpg").write_bytes(whole[:-50])
    (folder / "odd" / "empty.jpg").write_bytes(b"")
    (folder / "odd" / "text.png").write_text("not an image")
    with caplog.at_level(logging.WARNING, "sslfast"):
        dataset = open_dataset(str(folder))
    assert len(dataset) == 40
    assert dataset.labels == [0] * 20 + [1] * 20
    reasons = {Path(path).name: reason for path, reason in dataset.skipped}
    assert set(reasons) == {"cut.jpg", "empty.jpg", "text.png"}
    assert "end-of-image" in reasons["cut.jpg"]
    assert "empty" in reasons["empty.jpg"]
    assert "not a JPEG" in reasons["text.png"]
    log = caplog.text
    assert all(str(path) in log for path, _ in dataset.skipped)
    assert "skipped 3 of 43 images" in log


def test_bad_files_stop_on_request_and_when_nothing_is_left(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"\xff\xd8 and nothing")
    with pytest.raises(ValueError, match=r"unreadable image: .*0\.jpg.*2 more"):
        open_dataset(str(tmp_path), on_bad_image="raise")
    with pytest.raises(ValueError, match="none of the 3 images is readable"):
        open_dataset(str(tmp_path))


def test_checks_are_remembered_until_a_file_changes(folder, monkeypatch):
    looked = []
    real = check_module.check_file

    def counting(path):
        looked.append(path)
        return real(path)

    monkeypatch.setattr(check_module, "check_file", counting)
    first = open_dataset(str(folder))
    assert len(looked) == 40
    looked.clear()
    assert open_dataset(str(folder)) == first
    assert looked == []
    changed = folder / "even" / "00.jpg"
    changed.write_bytes(changed.read_bytes()[:-40])
    again = open_dataset(str(folder))
    assert looked == [str(changed)]
    assert [path for path, _ in again.skipped] == [str(changed)]


def test_an_unusable_cache_only_warns(folder, tmp_path, caplog):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "sslfast"):
        assert len(open_dataset(str(folder), cache_dir=str(blocked))) == 40
    assert "SSLFAST_CACHE" in caplog.text


def test_a_damaged_cache_is_made_again(folder, tmp_path, caplog):
    store = tmp_path / "store"
    first = open_dataset(str(folder), cache_dir=str(store))
    (kept,) = (store / "checks").glob("[!.]*")
    kept.write_text('{"version"')
    with caplog.at_level(logging.WARNING, "sslfast"):
        assert open_dataset(str(folder), cache_dir=str(store)) == first
    assert "damaged" in caplog.text
