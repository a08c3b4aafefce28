"""Pillow decodes what DALI is not given, or refuses; it takes part in batches like any other."""

import errno
import logging
import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

from sslfast._extras import MissingExtra
from sslfast.data import Recipe, View, make_loader, open_dataset, recipe
from sslfast.data.executors.pillow import BadPixelsError, decode

WHOLE = View(size=32, crop_scale=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture
def images(dataset_folder):
    """Loads a folder's images, in order, in levels of 255; fails if one is left out."""

    def load(**options):
        dataset = open_dataset(str(dataset_folder), **options)
        assert dataset.skipped == []
        loader = make_loader(
            dataset, Recipe("whole", (WHOLE,)), batch_size=3, train=False, threads=2
        )
        pixels = torch.cat([batch.views[0] for batch in loader]) * 255
        loader.close()
        assert loader.skipped == []
        return pixels.numpy().transpose(0, 2, 3, 1)

    return load


@pytest.fixture
def dataset_folder(tmp_path):
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def stray(content: bytes) -> bytes:
    """The same JPEG, with bytes that belong to nothing before its second table."""
    at = content.index(b"\xff\xdb", content.index(b"\xff\xdb") + 2)
    return content[:at] + b"\x01\x02\x03" + content[at:]


def test_a_batch_may_be_decoded_by_both(images, dataset_folder, pictures):
    for i in range(8):  # the batches of three are of DALI, of both, of Pillow
        picture = Image.fromarray(pictures[i])
        picture.save(dataset_folder / f"{i}.{'png' if i < 4 else 'tif'}")
    assert np.abs(images() - np.stack(pictures[:8])).max() < 1e-3


def test_stray_bytes_in_a_jpeg_do_no_harm(images, dataset_folder, pictures):
    path = dataset_folder / "0.jpg"
    Image.fromarray(pictures[2]).save(path)
    expected = images()
    path.write_bytes(stray(path.read_bytes()))
    assert np.abs(images() - expected).max() < 1.01


@pytest.mark.parametrize("sides", [(32, 32), (33, 41)])
def test_a_lossless_webp_with_exif(images, dataset_folder, pictures, sides):
    pixels = np.tile(pictures[0], (2, 2, 1))[: sides[0], : sides[1]]
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x010F] = "a camera"
    image.save(dataset_folder / "0.webp", lossless=True, exif=exif)
    image.save(dataset_folder / "1.png")
    webp, png = images()
    assert np.abs(webp - png).max() < 1e-3


def test_what_dali_refuses_is_tried_by_pillow_once(dataset_folder, pictures, caplog):
    # As where the quick look did not see it: a data set made by hand.
    for i in range(6):
        Image.fromarray(pictures[i]).save(dataset_folder / f"{i}.jpg", quality=95)
    path = dataset_folder / "4.jpg"
    path.write_bytes(stray(path.read_bytes()))
    dataset = open_dataset(str(dataset_folder))
    assert dataset.by_pillow == {str(path)}
    views = {}
    for knows in (True, False):
        known = dataset if knows else replace(dataset, by_pillow=frozenset())
        loader = make_loader(known, recipe("simclr_small"), batch_size=3, threads=1)
        caplog.clear()
        with caplog.at_level(logging.INFO, "sslfast"):
            views[knows] = [batch.views[1] for batch in [*loader, *loader]]
        assert caplog.text.count("4.jpg: Pillow decodes it") == (0 if knows else 1)
        assert loader.skipped == []
        loader.close()
    assert all(map(torch.equal, views[True], views[False]))


def test_l_a_b_colours(images, dataset_folder, pictures):
    lab = rgb2lab(pictures[5])
    coded = np.stack([lab[..., 0] * 2.55, lab[..., 1], lab[..., 2]], -1).round()
    coded = coded.astype(np.int16).astype(np.uint8)  # a and b are signed
    Image.frombytes("LAB", (32, 32), coded.tobytes()).save(dataset_folder / "0.tif")
    expected = lab2rgb(lab) * 255
    assert np.abs(images()[0] - expected).mean() < 3


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_tiffs_orientation_is_applied_and_no_others(
    images, dataset_folder, pictures, orientation
):
    wide = Image.fromarray(np.concatenate([pictures[0], pictures[8]], 1))
    exif = wide.getexif()
    exif[0x0112] = orientation
    for suffix in ("png", "tif"):
        wide.save(dataset_folder / f"0.{suffix}", exif=exif)
    plain, turned = images()
    middle = np.asarray(wide)[:, 16:48]
    assert np.abs(plain - middle).max() < 1e-3
    expected = np.rot90(middle, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])
    assert np.abs(turned - expected).max() < 1e-3


def test_deep_grey_is_scaled(dataset_folder):
    gray = np.array([[0, 128, 129, 65535]], np.uint16)
    for name in ("a.tif", "a.png", "a.pgm"):
        Image.fromarray(gray).save(dataset_folder / name)
        expected = (gray / 257).round()[:, :, None].repeat(3, 2)
        np.testing.assert_array_equal(decode(str(dataset_folder / name)), expected)


def test_damage_is_found_and_said(dataset_folder, pictures):
    for i in range(4):
        Image.fromarray(pictures[i]).save(dataset_folder / f"{i}.tif", compression="tiff_lzw")
    path = dataset_folder / "2.tif"
    content = bytearray(path.read_bytes())
    content[8:60] = bytes(52)  # of the first strip
    path.write_bytes(content)
    dataset = open_dataset(str(dataset_folder))
    assert dataset.skipped == []
    loader = make_loader(dataset, recipe("eval", size=32), batch_size=2, train=False, threads=1)
    assert [batch.sample_ids.tolist() for batch in loader] == [[0, 1], [3]]
    loader.close()
    ((bad, reason),) = loader.skipped
    assert bad == str(path)
    assert reason.startswith("Pillow: ")
    assert len(reason) > len("Pillow: ")


def test_a_file_that_turns_into_a_pipe_is_named(dataset_folder, pictures):
    for i in range(4):
        Image.fromarray(pictures[i]).save(dataset_folder / f"{i}.{'jpg' if i < 2 else 'tif'}")
    dataset = open_dataset(str(dataset_folder))
    for name in ("1.jpg", "2.tif"):
        (dataset_folder / name).unlink()
        os.mkfifo(dataset_folder / name)
    loader = make_loader(dataset, recipe("eval", size=32), batch_size=2, train=False, threads=1)
    assert [batch.sample_ids.tolist() for batch in loader] == [[0], [3]]
    assert {Path(path).name for path, _ in loader.skipped} == {"1.jpg", "2.tif"}
    assert all("not a regular file" in reason for _, reason in loader.skipped)
    loader.close()


def test_files_in_memory_are_given_back(dataset_folder, pictures):
    for i in range(6):
        Image.fromarray(pictures[i]).save(dataset_folder / f"{i}.tif")

    def in_memory():
        links = [entry.path for entry in os.scandir("/proc/self/fd")]
        return sum("sslfast-image" in os.path.realpath(link) for link in links)

    dataset = open_dataset(str(dataset_folder))
    loader = make_loader(dataset, recipe("simclr_small"), batch_size=3, threads=1)
    for _ in range(3):
        list(loader)
    assert in_memory() == 3 * 2  # of the batches in work
    loader.close()
    assert in_memory() == 0


def test_more_files_in_memory_than_may_be_open(dataset_folder, pictures):
    Image.fromarray(pictures[0]).save(dataset_folder / "0.tif")
    one = open_dataset(str(dataset_folder))
    many = replace(one, paths=one.paths * 64, sizes=one.sizes * 64)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, hard))
    try:
        loader = make_loader(many, recipe("simclr_small"), batch_size=64, threads=1)
        assert len(next(iter(loader))) == 64  # three batches are in work
        loader.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_lack_of_the_machines_is_no_bad_file(dataset_folder, pictures, monkeypatch):
    Image.fromarray(pictures[0]).save(dataset_folder / "0.tif")
    for lack in (OSError(errno.EMFILE, "Too many open files"), MemoryError()):

        def fails(path, lack=lack):
            raise lack

        monkeypatch.setattr("sslfast.data.executors.pillow.open_file", fails)
        with pytest.raises(type(lack)):
            decode(str(dataset_folder / "0.tif"))


def test_without_pillow_it_is_said(dataset_folder, pictures, monkeypatch):
    Image.fromarray(pictures[0]).save(dataset_folder / "0.tif")
    dataset = open_dataset(str(dataset_folder))
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtra, match=r"TIFF.*sslfast\[train\]"):
        make_loader(dataset, recipe("eval", size=32), batch_size=1, train=False)


def test_floating_point_is_refused_with_words(dataset_folder):
    path = dataset_folder / "0.tif"
    Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    with pytest.raises(BadPixelsError, match="floating-point"):
        decode(str(path))
    with pytest.raises(ValueError, match="32 bits"):
        open_dataset(str(dataset_folder))


def test_a_bomb_is_left_out_by_its_header(dataset_folder, pictures, monkeypatch):
    Image.fromarray(pictures[0]).save(dataset_folder / "0.png")
    Image.new("1", (200, 300)).save(dataset_folder / "1.png")
    assert len(open_dataset(str(dataset_folder))) == 2
    for limit, options in (("59999", {}), ("1", {"max_pixels": 59_999})):
        monkeypatch.setenv("SSLFAST_MAX_PIXELS", limit)
        dataset = open_dataset(str(dataset_folder), **options)
        ((path, reason),) = dataset.skipped
        assert Path(path).name == "1.png"
        assert "300 x 200 pixels, more than 59,999" in reason
        assert "SSLFAST_MAX_PIXELS" in reason
    assert len(open_dataset(str(dataset_folder), max_pixels=60_000)) == 2
    monkeypatch.delenv("SSLFAST_MAX_PIXELS")
    header = (dataset_folder / "1.png").read_bytes()
    claims = (30_000).to_bytes(4, "big")
    (dataset_folder / "1.png").write_bytes(header[:16] + claims + claims + header[24:])
    assert "178,956,970" in open_dataset(str(dataset_folder)).skipped[0][1]
    for wrong in ("many", "0", "-5"):
        monkeypatch.setenv("SSLFAST_MAX_PIXELS", wrong)
        with pytest.raises(ValueError, match="SSLFAST_MAX_PIXELS"):
            open_dataset(str(dataset_folder))
