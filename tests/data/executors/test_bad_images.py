"""Unusual files are read; damaged ones that only decoding finds are left out, by name."""

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslfast.data import Recipe, View, make_loader, open_dataset, recipe

BARE = View(size=32, crop_scale=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def png_16(pixels: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def decoded(folder: Path) -> torch.Tensor:
    """The only image of a folder, as the loader sees it, in levels of 255."""
    dataset = open_dataset(str(folder))
    assert dataset.skipped == []
    loader = make_loader(dataset, Recipe("bare", (BARE,)), batch_size=1, train=False, threads=1)
    (batch,) = loader
    loader.close()
    assert loader.skipped == []
    return batch.views[0][0] * 255


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("jpg", mode) for mode in ("L", "CMYK")]
    + [("png", mode) for mode in ("1", "L", "LA", "P", "RGBA")]
    + [("webp", mode) for mode in ("RGB", "RGBA")]
    + [("bmp", mode) for mode in ("L", "P", "RGB")]
    + [("tif", mode) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK")]
    + [("gif", "P"), ("ppm", "RGB"), ("pgm", "L"), ("pbm", "1"), ("avif", "RGB"), ("jfif", "RGB")],
)
def test_every_kind_of_image_becomes_rgb(suffix, mode, tmp_path, pictures):
    path = tmp_path / f"image.{suffix}"
    options = {"webp": {"lossless": True}, "jfif": {"format": "JPEG"}}.get(suffix, {})
    Image.fromarray(pictures[5]).convert(mode).save(path, **options)
    with Image.open(path) as file:
        expected = np.array(file.convert("RGB")).transpose(2, 0, 1)
    assert np.abs(decoded(tmp_path).numpy() - expected).max() < 1.01


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "colour.png"])
def test_16_bit_images_are_scaled(name, tmp_path, pictures):
    deep = pictures[5].astype(np.uint16) * 257
    if name == "colour.png":
        (tmp_path / name).write_bytes(png_16(deep))
    else:
        deep = deep[:, :, :1].repeat(3, 2)
        Image.fromarray(deep[:, :, 0]).save(tmp_path / name)
    expected = (deep // 257).transpose(2, 0, 1)
    assert np.abs(decoded(tmp_path).numpy() - expected).max() < 1.01


def break_huffman(path: Path) -> None:
    """Make a JPEG that looks whole from outside and that no decoder can read."""
    content = bytearray(path.read_bytes())
    table = content.index(b"\xff\xc4")
    content[table + 5 : table + 21] = b"\xff" * 16
    path.write_bytes(content)


def break_deflate(path: Path) -> None:
    content = bytearray(path.read_bytes())
    data = content.index(b"IDAT")
    content[data + 12 : data + 60] = bytes(48)
    path.write_bytes(content)


@pytest.fixture
def damaged(folder):
    """The folder with three files that the quick check lets pass: one JPEG, one PNG, one gone."""
    dataset_before = open_dataset(str(folder))
    jpeg, png, gone = (Path(dataset_before.paths[i]) for i in (7, 20, 33))
    with Image.open(png) as file:
        file.save(png.with_suffix(".png"))
    png.unlink()
    png = png.with_suffix(".png")
    break_huffman(jpeg)
    break_deflate(png)
    dataset = open_dataset(str(folder))
    assert dataset.skipped == []
    gone.unlink()
    return dataset, {str(jpeg), str(png), str(gone)}


def test_training_goes_on_without_the_files_that_cannot_be_decoded(damaged, caplog):
    dataset, bad = damaged
    loader = make_loader(dataset, recipe("simclr_small"), batch_size=8, threads=1)
    with caplog.at_level(logging.WARNING, "sslfast"):
        first, second = list(loader), list(loader)
    assert {path for path, _ in loader.skipped} == bad
    assert len(loader.skipped) == 3  # each found once
    assert all(path in caplog.text for path in bad)
    good = {i for i, path in enumerate(dataset.paths) if path not in bad}
    for epoch in (first, second):
        assert [len(batch) for batch in epoch] == [8] * 5
        assert {int(i) for batch in epoch for i in batch.sample_ids} == good
        assert all(view.isfinite().all() for batch in epoch for view in batch.views)
    loader.close()


def test_the_rest_of_the_data_is_as_without_the_accident(damaged):
    # A loader that knows the bad files from the start hands out the same batches.
    dataset, _ = damaged
    finds = make_loader(dataset, recipe("simclr_small"), batch_size=8, threads=1, prefetch=1)
    found = [*finds, *finds]
    knows = make_loader(dataset, recipe("simclr_small"), batch_size=8, threads=1)
    start = knows.state_dict()
    knows.load_state_dict(start | {"excluded": finds.state_dict()["excluded"]})
    for a, b in zip(found, [*knows, *knows], strict=True):
        assert torch.equal(a.sample_ids, b.sample_ids)
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))
    assert len(knows.skipped) == 3
    finds.close()
    knows.close()


def test_one_batch_an_epoch_never_shows_a_filler_its_own_picture_again(damaged):
    # The filler can only come from the same batch: then at least its draws are its own.
    dataset, _ = damaged
    loader = make_loader(dataset, recipe("simclr_small"), batch_size=40, threads=1)
    (batch,) = list(loader)
    ids, times = batch.sample_ids.unique(return_counts=True)
    assert sorted(times.tolist()) == [1] * 34 + [2] * 3
    for i in ids[times == 2]:
        one, other = (batch.sample_ids == i).nonzero().flatten()
        for view in batch.views:
            assert not torch.equal(view[one], view[other])
    loader.close()


def test_evaluation_leaves_them_out(damaged):
    dataset, bad = damaged
    loader = make_loader(
        dataset, recipe("eval", size=32), batch_size=1, train=False, threads=1, prefetch=4
    )
    batches = list(loader)
    good = [i for i, path in enumerate(dataset.paths) if path not in bad]
    assert [int(batch.sample_ids) for batch in batches] == good
    assert all(len(batch.views[0]) == 1 for batch in batches)
    loader.close()


def test_stopping_on_request_names_the_file(damaged):
    dataset, bad = damaged
    loader = make_loader(
        dataset, recipe("simclr_small"), batch_size=40, threads=1, on_bad_image="raise"
    )
    with pytest.raises(ValueError, match="unreadable image") as caught:
        next(iter(loader))
    assert all(path in str(caught.value) for path in bad)
    loader.close()


def test_nothing_readable_is_an_error(folder):
    dataset = open_dataset(str(folder))
    for path in dataset.paths:
        break_huffman(Path(path))
    loader = make_loader(dataset, recipe("simclr_small"), batch_size=8, threads=1)
    with pytest.raises(ValueError, match="no readable image is left"):
        list(loader)
    assert len(loader.skipped) == 40
    loader.close()


def test_an_error_that_is_no_files_fault_is_not_hidden(folder, monkeypatch):
    from sslfast.data.executors.pipeline import ViewPipeline

    loader = make_loader(open_dataset(str(folder)), recipe("simclr_small"), batch_size=8, threads=1)
    steps = iter(loader)
    next(steps)
    with monkeypatch.context() as patch:
        real = ViewPipeline.collect

        def collect(self):
            if self._views:  # the loader's own pipeline, not the one that looks for bad files
                raise RuntimeError("out of memory")
            return real(self)

        patch.setattr(ViewPipeline, "collect", collect)
        with pytest.raises(RuntimeError, match="out of memory"):
            next(steps)
    assert loader.skipped == []
    assert len(list(loader)) == 4  # and the place is kept
    loader.close()
