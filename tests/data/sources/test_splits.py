"""Which folders are splits: the usual names in any case, and nothing in silence."""

import logging
import os

import pytest
from PIL import Image

from sslfast.data import open_dataset
from sslfast.data.sources.opening import has_split


def make(root, *folders):
    """A picture in each folder."""
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / folder / f"{number}.png")


def tops(dataset, root):
    return sorted({os.path.relpath(path, root).split(os.sep)[0] for path in dataset.paths})


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train", "validation"),
        ("train", "valid"),
        ("Train", "Test"),
        ("training", "testing"),
        ("TRAINING", "Dev"),
        ("train", "eval"),
    ],
)
def test_usual_names_are_splits_in_any_case(tmp_path, train, held_out):
    make(tmp_path, f"{train}/cat", f"{train}/dog", f"{held_out}/dog")
    root = str(tmp_path)
    for split, folder in (("train", train), ("test", held_out), ("val", held_out)):
        assert tops(open_dataset(root, split), tmp_path) == [folder]
        assert has_split(root, split)
    assert open_dataset(root).classes == open_dataset(root, "test").classes == ["cat", "dog"]
    assert open_dataset(root).labels == [0, 1]
    assert open_dataset(root, "test").labels == [1]


def test_each_of_three_splits_is_itself(tmp_path):
    make(tmp_path, "Train/a", "Valid/a", "Test/a")
    for split, folder in (("train", "Train"), ("val", "Valid"), ("test", "Test")):
        assert tops(open_dataset(str(tmp_path), split), tmp_path) == [folder]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train/a", "Train/a", "test/a"], r"2 'train' splits: Train, train"),
        (["train/a", "val/a", "validation/a"], r"2 'val' splits: val, validation"),
        (["train/a", "test/a", "unlabeled", "more/x"], r"splits train, test and.* in more, unlab"),
    ],
)
def test_mixtures_are_refused_by_name(tmp_path, folders, message):
    make(tmp_path, *folders)
    with pytest.raises(ValueError, match=message):
        open_dataset(str(tmp_path))


def test_folders_without_images_beside_the_splits_do_not_matter(tmp_path):
    make(tmp_path, "train/a", "train/b", "test/b")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.xml").write_text("<a/>")
    assert open_dataset(str(tmp_path)).classes == ["a", "b"]


def test_a_class_may_be_called_train(tmp_path, caplog):
    make(tmp_path, "boat", "car", "train")
    with caplog.at_level(logging.WARNING, "sslfast"):
        assert open_dataset(str(tmp_path)).classes == ["boat", "car", "train"]
    assert "taken for classes, not for splits: train" in caplog.text
    assert not has_split(str(tmp_path), "test")


def test_splits_without_a_training_split_are_classes_and_it_is_said(tmp_path, caplog):
    make(tmp_path, "valid", "invalid")
    with caplog.at_level(logging.WARNING, "sslfast"):
        assert open_dataset(str(tmp_path)).classes == ["invalid", "valid"]
    assert "taken for classes, not for splits: valid" in caplog.text


def test_a_training_split_alone_has_its_own_classes(tmp_path):
    make(tmp_path, "Training/a", "Training/b")
    assert open_dataset(str(tmp_path)).labels == [0, 1]
    with pytest.raises(ValueError, match="no 'test' split"):
        open_dataset(str(tmp_path), "test")
