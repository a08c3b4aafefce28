import dataclasses

import pytest

from sslfast.data import Recipe, View, recipe


def test_simclr_has_the_papers_values():
    first, second = recipe("simclr").views
    assert first == second
    assert first.size == 224
    assert first.crop_scale == (0.08, 1.0)
    assert first.crop_ratio == (3 / 4, 4 / 3)
    assert (first.brightness, first.contrast, first.saturation, first.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (first.flip, first.jitter_prob, first.gray_prob, first.blur_prob) == (0.5, 0.8, 0.2, 0.5)
    assert first.blur_sigma == (0.1, 2.0)


def test_simclr_small_halves_the_jitter_and_drops_the_blur():
    view = recipe("simclr_small").views[0]
    assert (view.size, view.blur_prob) == (32, 0)
    assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.4, 0.4, 0.4, 0.1)


def test_eval_has_one_view_without_randomness():
    (view,) = recipe("eval").views
    assert view.crop_scale is None
    assert not view.recolors
    assert (view.flip, view.blur_prob) == (0, 0)


def test_size_and_overrides_reach_every_view():
    changed = recipe("simclr", size=96, blur_prob=0.0)
    assert [(view.size, view.blur_prob) for view in changed.views] == [(96, 0), (96, 0)]
    assert recipe("simclr").views[0].size == 224  # the registry is untouched


def test_recipes_are_frozen_and_comparable():
    assert recipe("eval", size=32) == Recipe("eval", (View(size=32, crop_scale=None),))
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe("eval").name = "x"


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"unknown recipe 'simcrl'.*Did you mean 'simclr'"):
        recipe("simcrl")
    with pytest.raises(ValueError, match=r"no field 'blur_probability'.*Did you mean 'blur_prob'"):
        recipe("simclr", blur_probability=0.1)


@pytest.mark.parametrize(
    "bad",
    [
        {"size": 0},
        {"flip": 1.5},
        {"brightness": -0.1},
        {"hue": 0.6},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 0.2)},
        {"crop_ratio": (2.0, 1.0)},
        {"blur_sigma": (0.0, 2.0)},
        {"std": (1.0, 0.0, 1.0)},
    ],
)
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        View(**bad)
