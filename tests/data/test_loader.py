import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sslfast.data import Loader, Recipe, View, make_loader, open_dataset, recipe

SMALL = recipe("simclr_small")
BARE = View(size=32, crop_scale=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture
def dataset(folder):
    return open_dataset(str(folder))


@pytest.fixture
def loader(dataset):
    """Makes loaders and closes them."""
    made = []

    def make(recipe=SMALL, **options):
        options = {"batch_size": 8, "threads": 1} | options
        made.append(make_loader(options.pop("dataset", dataset), recipe, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def flat(batches):
    """Everything in some batches, as a list of tensors."""
    return [t for b in batches for t in (*b.views, b.sample_ids, b.labels)]


def equal(a, b):
    a, b = flat(a), flat(b)
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def only(loader):
    """One epoch's first view, samples in order."""
    return torch.cat([batch.views[0] for batch in loader])


def test_batches_are_what_the_contract_says(loader, dataset):
    one = loader()
    assert isinstance(one, Loader)
    assert (one.num_samples, one.steps_per_epoch, len(one)) == (40, 5, 5)
    batches = list(one)
    assert len(batches) == 5
    for batch in batches:
        assert len(batch.views) == 2
        for view in batch.views:
            assert view.shape == (8, 3, 32, 32)
            assert view.dtype == torch.float32
            assert view.is_contiguous()
            assert view.isfinite().all()
        assert batch.sample_ids.dtype == batch.labels.dtype == torch.int64
        assert not torch.equal(*batch.views)
        assert batch.labels.tolist() == [dataset.labels[i] for i in batch.sample_ids]
    assert sorted(torch.cat([b.sample_ids for b in batches]).tolist()) == list(range(40))


def test_pixels_labels_and_ids_belong_together(loader, dataset):
    for batch in loader(Recipe("bare", (BARE,))):
        for image, i in zip(batch.views[0], batch.sample_ids, strict=True):
            with Image.open(dataset.paths[i]) as file:
                expected = np.array(file).transpose(2, 0, 1)
            assert np.abs(image.numpy() * 255 - expected).max() < 1e-3


def test_an_unlabelled_folder_has_no_labels(loader, folder):
    batch = next(iter(loader(dataset=open_dataset(str(folder / "odd")))))
    assert batch.labels is None


def test_the_seed_decides_the_bits_and_threads_do_not(loader):
    first = list(loader(seed=1))
    assert equal(first, list(loader(seed=1, threads=2, prefetch=4)))
    assert not equal(first, list(loader(seed=2)))


def test_epochs_differ(loader):
    one = loader()
    assert not equal(list(one), list(one))


@pytest.mark.parametrize("taken", [0, 1, 3, 5, 7, 10])
def test_a_resumed_loader_goes_on_bit_for_bit(loader, taken):
    first = loader(prefetch=3)
    batches = []
    state = first.state_dict()
    for _ in range(4):
        for batch in first:
            batches.append(batch)
            if len(batches) == taken:
                state = first.state_dict()
    resumed = loader(prefetch=1)
    resumed.load_state_dict(state)
    rest = list(resumed)
    # the rest of the epoch; at its edge, the whole next one
    assert len(rest) == 5 - taken % 5
    rest += list(resumed)
    assert equal(rest, batches[taken : taken + len(rest)])


def test_a_loader_goes_back_when_told_to(loader):
    one = loader()
    steps = iter(one)
    next(steps)
    state = one.state_dict()
    rest = list(steps)
    one.load_state_dict(state)
    assert equal(list(one), rest)


def test_leaving_an_epoch_midway_keeps_the_place(loader):
    whole = list(loader())
    one = loader()
    for batch in one:
        first = batch
        break
    assert equal([first, *one], whole)


def test_states_that_do_not_fit_are_refused(loader):
    state = loader(seed=1).state_dict()
    for change, options in (("seed", {"seed": 2}), ("global_batch", {"seed": 1, "batch_size": 4})):
        with pytest.raises(ValueError, match=rf"cannot resume.*{change}"):
            loader(**options).load_state_dict(state)
    with pytest.raises(ValueError, match=r"loader has schema_version 2, .* newer one"):
        loader(seed=1).load_state_dict(state | {"version": 2})


def test_ranks_are_slices_of_one_process(loader):
    alone = list(loader(batch_size=10))
    ranks = [loader(batch_size=5, rank=rank, world_size=2) for rank in range(2)]
    for together, a, b in zip(alone, *ranks, strict=True):
        assert not set(a.sample_ids.tolist()) & set(b.sample_ids.tolist())
        for whole, x, y in zip(flat([together]), flat([a]), flat([b]), strict=True):
            # the same images too: what a sample draws does not depend on its rank
            assert torch.equal(whole, torch.cat((x, y)))


def test_a_resume_may_change_the_number_of_ranks(loader):
    alone = loader(batch_size=10)
    steps = iter(alone)
    next(steps)
    rank = loader(batch_size=5, rank=1, world_size=2)
    rank.load_state_dict(alone.state_dict())
    expected = torch.cat([batch.sample_ids[5:] for batch in steps])
    assert torch.equal(torch.cat([batch.sample_ids for batch in rank]), expected)


def test_without_training_files_come_in_order_every_time_the_same(loader):
    one = loader(train=False, batch_size=16)
    first, second = list(one), list(one)
    assert [len(batch) for batch in first] == [16, 16, 8]
    assert [len(batch.views[0]) for batch in first] == [16, 16, 8]
    assert torch.cat([batch.sample_ids for batch in first]).tolist() == list(range(40))
    assert equal(first, second)


def test_evaluation_may_be_smaller_than_a_batch_and_training_may_not(loader):
    (batch,) = loader(train=False, batch_size=64)
    assert len(batch) == 40
    with pytest.raises(ValueError, match="40 images, fewer than one global batch of 64"):
        loader(batch_size=64)


def test_the_eval_view_is_the_image_normalised(loader, dataset):
    view = recipe("eval", size=32).views[0]
    (batch,) = loader(recipe("eval", size=32), train=False, batch_size=40)
    mean, std = np.array(view.mean), np.array(view.std)
    for image, path in zip(batch.views[0], dataset.paths, strict=True):
        with Image.open(path) as file:
            pixels = np.array(file)
        expected = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
        # both decode with libjpeg-turbo: one level of 255 at most between versions
        assert np.abs(image.numpy() - expected).max() < 1 / 255 / std.min() + 1e-5


def test_the_eval_view_resizes_the_shorter_side_and_cuts_the_middle(loader, tmp_path, pictures):
    wide = np.concatenate([pictures[0], pictures[8], pictures[16]], axis=1)
    (tmp_path / "wide").mkdir()
    path = tmp_path / "wide" / "0.png"
    Image.fromarray(wide).resize((192, 64), Image.Resampling.BICUBIC).save(path)
    data = open_dataset(str(path.parent))
    (batch,) = loader(Recipe("bare", (BARE,)), dataset=data, train=False, batch_size=1)
    with Image.open(path) as file:
        middle = file.crop((64, 0, 128, 64)).resize((32, 32), Image.Resampling.BILINEAR)
    difference = batch.views[0][0].numpy() * 255 - np.array(middle).transpose(2, 0, 1)
    assert np.abs(difference[:, 2:-2, 2:-2]).max() <= 1.01


@pytest.mark.parametrize("size", [(33, 32), (32, 35), (47, 32)])
def test_an_image_of_the_views_size_keeps_its_pixels(loader, tmp_path, pictures, size):
    height, width = size
    pixels = np.concatenate([pictures[0], pictures[8]], 0)
    pixels = np.concatenate([pixels, pixels[::-1]], 1)[:height, :width]
    (tmp_path / "one").mkdir()
    Image.fromarray(pixels).save(tmp_path / "one" / "0.png")
    data = open_dataset(str(tmp_path / "one"))
    (batch,) = loader(Recipe("bare", (BARE,)), dataset=data, train=False, batch_size=1)
    top, left = round((height - 32) / 2), round((width - 32) / 2)
    expected = pixels[top : top + 32, left : left + 32].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(batch.views[0][0].numpy(), expected, atol=1e-6)


def test_flip(loader):
    plain = only(loader(Recipe("r", (BARE,))))
    flipped = only(loader(Recipe("r", (replace(BARE, flip=1.0),))))
    assert torch.equal(flipped, plain.flip(3))
    some = only(loader(Recipe("r", (replace(BARE, flip=0.5),))))
    turned = [torch.equal(a, b) for a, b in zip(some, flipped, strict=True)]
    assert 0 < sum(turned) < 40


def test_grey_solarise_and_colour(loader):
    plain = only(loader(Recipe("r", (BARE,))))
    gray = only(loader(Recipe("r", (replace(BARE, gray_prob=1.0),))))
    assert (gray - gray[:, :1]).abs().max() < 1e-6
    sun = only(loader(Recipe("r", (replace(BARE, solarize_prob=1.0),))))
    expected = torch.where(plain >= 0.5, 1 - plain, plain)
    torch.testing.assert_close(sun, expected, atol=2e-6, rtol=0)
    jitter = replace(BARE, jitter_prob=1.0, brightness=0.5)
    ratio = only(loader(Recipe("r", (jitter,)))).mean((1, 2, 3)) / plain.mean((1, 2, 3))
    assert ratio.min() > 0.45
    assert ratio.max() < 1.51
    assert ratio.std() > 0.1


def test_blur(loader):
    plain = only(loader(Recipe("r", (BARE,))))
    # sigma is fixed: the filter can be checked against a direct convolution
    view = replace(BARE, blur_prob=1.0, blur_sigma=(1.5, 1.5))
    blurred = only(loader(Recipe("r", (view,))))
    taps = torch.exp(-0.5 * (torch.arange(-5.0, 6.0) / 1.5) ** 2)
    taps = taps / taps.sum()
    kernel = (taps[:, None] * taps).expand(3, 1, 11, 11)
    padded = torch.nn.functional.pad(plain, (5, 5, 5, 5), mode="reflect")
    expected = torch.nn.functional.conv2d(padded, kernel, groups=3)
    assert (blurred - expected).abs().max() * 255 < 1.01  # rounded to whole levels on the way
    never = only(loader(Recipe("r", (replace(BARE, blur_prob=1e-9),))))
    assert torch.equal(never, plain)


def test_normalisation(loader):
    plain = only(loader(Recipe("r", (BARE,))))
    mean, std = plain.mean((0, 2, 3)), plain.std((0, 2, 3))
    view = replace(BARE, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    for recolored in (view, replace(view, gray_prob=1e-9)):  # in DALI, and after the colours
        images = only(loader(Recipe("r", (recolored,))))
        torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_views_of_different_sizes(loader):
    views = (View(size=32, flip=0.5), View(size=16, crop_scale=(0.05, 0.3)))
    batch = next(iter(loader(Recipe("multi-crop", views))))
    assert [view.shape for view in batch.views] == [(8, 3, 32, 32), (8, 3, 16, 16)]


def test_batches_outlive_the_loader(loader, dataset):
    one = loader(recipe("eval", size=32), train=False)
    batches = list(one)
    copies = [view.clone() for batch in batches for view in batch.views]
    list(one)
    one.close()
    assert all(
        torch.equal(view, copy)
        for view, copy in zip((v for b in batches for v in b.views), copies, strict=True)
    )
    with pytest.raises(RuntimeError, match="closed"):
        next(iter(one))


def test_a_data_set_made_by_hand_needs_no_sizes(loader, dataset):
    assert equal(list(loader()), list(loader(dataset=replace(dataset, sizes=None))))


def test_bad_arguments(loader):
    with pytest.raises(ValueError, match="prefetch"):
        loader(prefetch=0)
    with pytest.raises(ValueError, match="threads"):
        loader(threads=0)
    with pytest.raises(ValueError, match="'cpu' and 'cuda'"):
        loader(device="meta")
    with pytest.raises(ValueError, match="on_bad_image"):
        loader(on_bad_image="ignore")


def test_the_gpu_graph_is_the_same_with_mixed_decoding():
    # Defined here, not run: DALI builds a GPU pipeline only where there is a GPU.
    from sslfast.data.executors.pipeline import ViewPipeline

    def placement(device):
        graph = ViewPipeline(recipe("simclr").views, 4, torch.device(device)).pipeline
        found = {}
        ahead = list(graph._graph_out)
        while ahead:
            node = ahead.pop()
            found[node.source.name] = node.device
            ahead += [n for i in node.source.inputs for n in (i if isinstance(i, list) else [i])]
        return found

    cpu, gpu = placement("cpu"), placement("cuda:0")
    assert set(cpu.values()) == {"cpu"}
    assert cpu.keys() == gpu.keys()
    moved = {name.strip("_").split("_")[0] for name, device in gpu.items() if device == "gpu"}
    assert moved == {"Image", "Resize", "GaussianBlur", "CropMirrorNormalize"}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_gpu_agrees_with_the_cpu(loader):
    for a, b in zip(loader(), loader(device="cuda"), strict=True):
        assert b.views[0].is_cuda
        assert torch.equal(a.sample_ids, b.sample_ids.cpu())
        for x, y in zip(a.views, b.views, strict=True):
            # nvJPEG's and libjpeg-turbo's inverse DCT differ by a level or two
            assert (x - y.cpu()).abs().mean() < 0.05


IMPORTS = """
import sys
import sslfast.data
heavy = {"nvidia", "skimage", "sklearn", "mlxtend", "PIL", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""

ABSENT = """
import sys
sys.modules["nvidia.dali"] = None  # not installed, where other packages of NVIDIA's may be
from sslfast._extras import MissingExtra
from sslfast.data import make_loader, open_dataset, recipe
dataset = open_dataset(sys.argv[1])
try:
    next(iter(make_loader(dataset, recipe("simclr_small"), batch_size=4)))
except MissingExtra as error:
    assert "sslfast[dali]" in str(error)
else:
    raise SystemExit("no error")
"""


@pytest.mark.parametrize("program", [IMPORTS, ABSENT])
def test_what_is_imported_when(program, folder):
    command = [sys.executable, "-W", "error", "-c", program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
