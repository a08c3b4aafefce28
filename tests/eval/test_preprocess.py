"""A loaded encoder's preprocess makes what the evaluation's loader makes, from pixels in memory."""

import copy
import pickle
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from videos import folder_of

from sslfast import data
from sslfast.data import Recipe
from sslfast.data.executors.frames import read_frames
from sslfast.eval import Preprocess

MEAN, STD = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)


def loaded(folder: Path, recipe: Recipe) -> tuple[list[str], torch.Tensor]:
    """The files of a folder, and what the evaluation's loader makes of them."""
    dataset = data.open_dataset(str(folder), cache_dir=str(folder), modality=recipe.modality)
    loader = data.make_loader(dataset, recipe, batch_size=3, threads=1, train=False)
    with closing(loader):
        return dataset.paths, torch.cat([batch.views[0] for batch in loader])


def test_images_as_the_loader_makes_them(tmp_path: Path) -> None:
    random = np.random.default_rng()
    shapes = [(32, 32, 3), (32, 32), (64, 47, 3), (17, 90, 3), (51, 50, 4), (300, 211, 3)]
    for i, shape in enumerate(shapes):
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(tmp_path / f"{i}.png")
    recipe = data.recipe("eval", size=32, mean=MEAN, std=STD)
    paths, expected = loaded(tmp_path, recipe)
    preprocess = Preprocess(recipe.views[0])
    found = preprocess([Image.open(path) for path in paths])
    assert found.dtype == torch.float32
    assert torch.equal(found[:2], expected[:2])  # nothing to resize
    levels = ((found - expected) * torch.tensor(STD).view(3, 1, 1) * 255).abs()
    assert levels.max() < 1.01
    assert (levels > 0.01).float().mean() < 0.03  # ties
    # The same pixels in any form.
    pixels = np.array(Image.open(paths[2]))
    for given in (pixels, torch.from_numpy(pixels), pixels[None], [pixels]):
        assert torch.equal(preprocess(given), found[2:3])
    gray = np.asarray(Image.open(paths[1]))[..., None]
    assert torch.equal(preprocess(np.stack([gray, gray])), found[[1, 1]])
    palette = Image.fromarray(pixels).quantize(16)
    palette.info["transparency"] = bytes(16)
    assert torch.equal(preprocess(palette), preprocess(palette.convert("RGBA").convert("RGB")))
    assert preprocess([]).shape == (0, 3, 32, 32)


def test_clips_as_the_loader_makes_them(tmp_path: Path) -> None:
    folder_of(tmp_path, {"train": 1})
    recipe = data.recipe("eval", size=16, mean=MEAN, std=STD, num_frames=3, sampling_rate=2)
    paths, expected = loaded(tmp_path, recipe)
    preprocess = Preprocess(recipe.views[0])
    videos = [np.stack(read_frames(path, range(12))) for path in paths]
    assert torch.equal(preprocess(videos), expected)
    videos[0].flags.writeable = False
    frames = [Image.fromarray(frame) for frame in videos[0]]
    assert torch.equal(preprocess(frames), expected[:1])
    # A clip is a clip already; of a shorter video the last frame is repeated.
    chosen = preprocess(videos[0][3:6])
    assert torch.equal(chosen[:, :, 1], preprocess(videos[0][[4]])[:, :, 0])
    short = preprocess(videos[0][:2])
    assert torch.equal(short[:, :, 1], short[:, :, 2])


def test_what_is_no_image_is_refused_in_one_line() -> None:
    images = Preprocess(data.recipe("eval", size=8).views[0])
    clips = Preprocess(data.recipe("eval", size=8, num_frames=2).views[0])
    zeros = torch.zeros(2, 3, 9, 9, dtype=torch.uint8)
    for preprocess, given, error, message in (
        (images, torch.rand(3, 9, 9), TypeError, r"takes uint8 images.*float32.*encoder\.mean"),
        (images, "photo.png", TypeError, "takes uint8 images.*got str"),
        (images, zeros, ValueError, r"1 or 3 channels last, got Tensor torch.uint8 \[2, 3, 9, 9\]"),
        (images, Image.new("I;16", (9, 9)), TypeError, "more than 8 bits"),
        (images, zeros.movedim(1, -1)[None], ValueError, "takes images"),
        (images, zeros.movedim(1, -1)[:, :0], ValueError, "takes images"),
        (clips, zeros.movedim(1, -1)[0], ValueError, "takes videos"),
        (clips, [np.zeros((9, 9, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)], ValueError, "size"),
    ):
        with pytest.raises(error, match=message) as caught:
            preprocess(given)
        assert "\n" not in str(caught.value)


def test_it_can_be_copied_and_stored() -> None:
    preprocess = Preprocess(data.recipe("eval", size=8).views[0])
    image = np.random.default_rng().integers(0, 256, (11, 9, 3), np.uint8)
    for other in (copy.deepcopy(preprocess), pickle.loads(pickle.dumps(preprocess))):
        assert torch.equal(other(image), preprocess(image))
