from types import SimpleNamespace

import torch

from sslfast.data import View, recipe
from sslfast.data.views import draws as module

MANY = torch.arange(20_000)
SQUARE = torch.full((20_000, 2), 100)


def draw(*args, **options):
    """The draws, as tensors."""
    return [
        SimpleNamespace(**{name: torch.from_numpy(value) for name, value in vars(one).items()})
        for one in module.draw(*args, **options)
    ]


def one(view, ids=MANY, sizes=SQUARE, epoch=0, seed=0):
    return draw((view,), ids, sizes, epoch=epoch, seed=seed)[0]


def test_a_sample_draws_the_same_whatever_batch_it_is_in():
    views = recipe("simclr").views
    whole = draw(views, torch.arange(16), torch.full((16, 2), 90), epoch=3, seed=5)
    some = torch.tensor([11, 2])
    part = draw(views, some, torch.full((2, 2), 90), epoch=3, seed=5)
    for all_of_view, part_of_view in zip(whole, part, strict=True):
        for name, value in vars(part_of_view).items():
            assert torch.equal(value, getattr(all_of_view, name)[some]), name


def test_views_epochs_and_seeds_differ():
    first, second = draw(recipe("simclr").views, MANY, SQUARE, epoch=0, seed=0)
    later = one(recipe("simclr").views[0], epoch=1)
    other = one(recipe("simclr").views[0], seed=1)
    for different in (second, later, other):
        same = (first.start == different.start).all(1).float().mean()
        assert same < 0.05  # 101 x 101 places at most, many for small crops
    assert torch.equal(first.start, one(recipe("simclr").views[0]).start)


def test_turning_a_step_off_leaves_the_other_draws():
    full, less = recipe("simclr").views[0], recipe("simclr", jitter_prob=0.0).views[0]
    assert torch.equal(one(full).start, one(less).start)
    assert torch.equal(one(full).sigma, one(less).sigma)


def test_rates_are_the_probabilities():
    view = View(flip=0.3, jitter_prob=0.8, brightness=0.5, blur_prob=0.4, solarize_prob=0.2)
    d = one(view)
    eye = torch.eye(3)
    changed = ((d.matrix - eye).abs().amax((1, 2)) > 1e-4).float().mean()
    rates = torch.stack(
        (d.flip.float().mean(), changed, (d.sigma > 0).float().mean(), d.solarize.float().mean())
    )
    # four standard deviations of a rate over 20,000 draws are at most 0.0142
    torch.testing.assert_close(rates, torch.tensor([0.3, 0.8, 0.4, 0.2]), atol=0.0142, rtol=0)


def test_blur_sigma_is_uniform_in_its_range():
    sigma = one(View(blur_prob=1.0, blur_sigma=(0.5, 1.5))).sigma
    assert sigma.min() >= 0.5
    assert sigma.max() <= 1.5
    assert abs(sigma.mean() - 1.0) < 0.01


def test_crops_have_the_area_and_shape_asked_for():
    d = one(View(crop_scale=(0.2, 0.6)))
    assert (d.start >= 0).all()
    assert (d.end <= 1).all()
    height, width = ((d.end - d.start) * 100).unbind(1)
    torch.testing.assert_close(height, height.round(), atol=1e-3, rtol=0)  # whole pixels
    area, ratio = height * width / 1e4, width / height
    assert area.min() > 0.18  # rounding to whole pixels moves it a little
    assert area.max() < 0.62
    assert abs(area.mean() - 0.4) < 0.005
    assert ratio.min() > 0.70
    assert ratio.max() < 1.40
    assert abs(ratio.log().mean()) < 0.005
    # every place in the room is equally likely
    at = (d.start[:, 1] / (1 - (d.end - d.start)[:, 1]).clamp_min(1e-6))[width < 90]
    assert abs(at.mean() - 0.5) < 0.01


def test_a_crop_that_never_fits_falls_back_to_the_largest_centred_one():
    sizes = torch.tensor([[20, 400], [400, 20]]).repeat(50, 1)
    d = one(View(crop_scale=(0.9, 1.0)), torch.arange(100), sizes)
    extent = (d.end - d.start) * sizes
    torch.testing.assert_close(extent[0], torch.tensor([20.0, 27.0]))
    torch.testing.assert_close(extent[1], torch.tensor([27.0, 20.0]))
    torch.testing.assert_close(d.start + d.end, torch.ones(100, 2), atol=1 / 400 + 1e-6, rtol=0)


def test_without_a_crop_the_centred_square_is_taken():
    d = one(View(crop_scale=None), torch.arange(2), torch.tensor([[50, 100], [64, 64]]))
    torch.testing.assert_close(d.start, torch.tensor([[0, 0.25], [0, 0]]))
    torch.testing.assert_close(d.end, torch.tensor([[1, 0.75], [1, 1]]))


def test_what_needs_no_resizing_is_cut_between_pixels():
    # As torchvision's CenterCrop rounds: half to even.
    sizes = torch.tensor([[33, 32], [32, 35], [32, 32], [60, 32], [32, 37]])
    d = one(View(size=32, crop_scale=None), torch.arange(5), sizes)
    start = torch.tensor([[0, 0], [0, 2], [0, 0], [14, 0], [0, 2]])
    torch.testing.assert_close(d.start * sizes, start.float())
    torch.testing.assert_close(d.end * sizes, start.float() + 32)


def test_the_centred_square_is_that_of_resize_and_centre_crop():
    # 101 x 64 at 32: resized to 50 x 32, rows 9 to 41 of it, which are rows 18 to 82 of the image.
    d = one(View(size=32, crop_scale=None), torch.arange(1), torch.tensor([[101, 64]]))
    torch.testing.assert_close(d.start[0] * torch.tensor([101, 64]), torch.tensor([18.0, 0.0]))
    # 3 x 2 at 7: resized to 10 x 7, room for 3 rows: 2 (1.5, half to even) of the 7 that are 2.
    d = one(View(size=7, crop_scale=None), torch.arange(1), torch.tensor([[3, 2]]))
    torch.testing.assert_close(d.start[0] * torch.tensor([3, 2]), torch.tensor([4 / 7, 0.0]))
    assert (d.end <= 1).all()
