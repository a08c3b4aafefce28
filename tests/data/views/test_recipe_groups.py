"""Recipes of groups of views: BYOL's two that differ, DINO's two large and eight small ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslfast.data import Group, Recipe, View, make_loader, open_dataset, recipe
from sslfast.data.views.draws import draw
from sslfast.methods import get
from sslfast.models import vit_micro
from sslfast.training import TrainConfig
from sslfast.training.config import ConfigError
from sslfast.training.pipeline import build_recipe, check_image_size


def colors(view: View) -> tuple[float, ...]:
    return (view.jitter_prob, view.brightness, view.contrast, view.saturation, view.hue)


def test_byol_has_the_papers_values() -> None:
    first, second = recipe("byol").views
    for view in (first, second):
        assert (view.size, view.crop_scale, view.crop_ratio) == (224, (0.08, 1.0), (3 / 4, 4 / 3))
        assert colors(view) == (0.8, 0.4, 0.4, 0.2, 0.1)
        assert (view.flip, view.gray_prob, view.blur_sigma) == (0.5, 0.2, (0.1, 2.0))
    assert (first.blur_prob, first.solarize_prob) == (1.0, 0.0)
    assert (second.blur_prob, second.solarize_prob) == (0.1, 0.2)


def test_dino_has_the_published_values() -> None:
    made = recipe("dino")
    assert [(g.name, g.view.size, g.count) for g in made.groups] == [
        ("first", 224, 1),
        ("second", 224, 1),
        ("local", 96, 8),
    ]
    first, second, local = (group.view for group in made.groups)
    assert made.views == (first, second, *[local] * 8)
    assert first.crop_scale == second.crop_scale == (0.4, 1.0)
    assert local.crop_scale == (0.05, 0.4)
    assert [view.blur_prob for view in (first, second, local)] == [1.0, 0.1, 0.5]
    assert [view.solarize_prob for view in (first, second, local)] == [0.0, 0.2, 0.0]
    for view in (first, second, local):
        assert colors(view) == (0.8, 0.4, 0.4, 0.2, 0.1)
        assert (view.flip, view.gray_prob) == (0.5, 0.2)


def test_lejepa_has_the_published_values() -> None:
    made = recipe("lejepa")
    assert [(g.name, g.view.size, g.count) for g in made.groups] == [
        ("global", 224, 2),
        ("local", 98, 6),
    ]
    whole, local = (group.view for group in made.groups)
    assert (whole.crop_scale, local.crop_scale) == ((0.3, 1.0), (0.05, 0.3))
    for view in (whole, local):
        assert colors(view) == (0.8, 0.4, 0.4, 0.2, 0.1)
        assert (view.flip, view.gray_prob, view.blur_prob) == (0.5, 0.2, 0.5)
        assert (view.solarize_prob, view.blur_sigma) == (0.2, (0.1, 2.0))


def test_a_recipe_without_groups_is_one_group_a_view() -> None:
    one, two = View(), View(size=32)
    made = Recipe("mine", (one, two))
    assert made.groups == (Group("", one), Group("", two))
    assert made == Recipe(name="mine", views=(one, two))


def test_overrides_reach_all_views_or_those_of_a_group() -> None:
    made = recipe(
        "dino", size=32, local_size=16, flip=0.0, local={"count": 2, "crop_scale": [0.1, 0.2]}
    )
    assert [view.size for view in made.views] == [32, 32, 16, 16]
    assert {view.flip for view in made.views} == {0.0}
    assert [view.crop_scale for view in made.views] == [(0.4, 1.0)] * 2 + [(0.1, 0.2)] * 2
    assert made.group_names == ("first", "second", "local", "local")
    assert len(recipe("dino").views) == 10  # the registry is untouched
    # What is said of a group goes before what is said of all.
    assert recipe("byol", blur_prob=0.3, second={"blur_prob": 0.0}).views[1].blur_prob == 0
    assert recipe("dino", local={"count": 0}).views == recipe("dino").views[:2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lokal": {"size": 96}}, r"no field 'lokal'.*Did you mean 'local'"),
        ({"local": {"sise": 96}}, r"no field 'sise'.*Did you mean 'size'"),
        ({"local": {"size": 0}}, r"^local\.size must be at least 1"),
        ({"local": {"count": -1}}, r"^local\.count must be at least 0"),
        ({"local": 96}, r"^local must be a dict of fields of the group, got 96"),
        ({"flip": 2}, r"^flip must be at most 1"),
        ({"local_size": 0}, r"^size must be at least 1"),
    ],
)
def test_bad_overrides_are_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe("dino", **changes)


def test_groups_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="'simclr' has none"):
        recipe("simclr", local_size=32)
    for names in (("a",), ("a", "a")):  # too few; one group of two views
        with pytest.raises(ValueError, match="group_names"):
            Recipe("mine", (View(), View(size=32)), names)
    with pytest.raises(ValueError, match="one view or more"):
        Recipe.of_groups("none", Group("a", View(), 0))


def test_views_of_a_group_draw_by_their_place_among_all() -> None:
    """Streams go by the flat number, so groups change no draw of a recipe that had none."""
    ids, sizes = torch.arange(64), torch.full((64, 2), 90)
    grouped = draw(recipe("dino").views, ids, sizes, epoch=2, seed=3)
    for v, view in enumerate(recipe("dino").views):
        alone = draw((*[View()] * v, view), ids, sizes, epoch=2, seed=3)[v]
        assert (grouped[v].start == alone.start).all()
        assert (grouped[v].matrix == alone.matrix).all()
    assert not (grouped[2].start == grouped[3].start).all()


def test_the_loader_makes_views_of_both_sizes(folder: Path) -> None:
    made = recipe("dino", size=32, local_size=16, local={"count": 3})
    loader = make_loader(open_dataset(str(folder)), made, batch_size=8, threads=1)
    batch = next(iter(loader))
    loader.close()
    assert [view.shape[1:] for view in batch.views] == list(made.view_shapes)
    assert [view.shape[-1] for view in batch.views] == [32, 32, 16, 16, 16]
    assert not torch.equal(batch.views[2], batch.views[3])
    # The same view, alone in a recipe, has the same pixels.
    alone = make_loader(
        open_dataset(str(folder)), Recipe("alone", made.views[:1]), batch_size=8, threads=1
    )
    assert torch.equal(next(iter(alone)).views[0], batch.views[0])
    alone.close()


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(**changes: Any) -> TrainConfig:
        given = {"method": "simclr", "data": "x", "out": str(tmp_path), "steps": 1}
        return TrainConfig.from_dict({**given, **changes})

    return make


def test_settings_reach_groups(config: Callable[..., TrainConfig]) -> None:
    made = build_recipe(
        config(recipe="byol", image_size=32, recipe_args={"second": {"blur_sigma": [0.5, 1.0]}}),
        get("simclr"),
    )
    assert [view.size for view in made.views] == [32, 32]
    assert made.views[1].blur_sigma == (0.5, 1.0)
    with pytest.raises(ConfigError, match=r"^recipe_args\.second\.blur_prob must be at most 1"):
        build_recipe(config(recipe="byol", recipe_args={"second": {"blur_prob": 2}}), get("simclr"))
    with pytest.raises(
        ConfigError, match=r"'dino' makes 2 and local views .* simclr learns from 2"
    ):
        build_recipe(config(recipe="dino"), get("simclr"))


def test_local_views_are_of_any_number_and_say_nothing_of_the_encoder(
    config: Callable[..., TrainConfig],
) -> None:
    class Crops(get("simclr")):  # type: ignore[misc]
        recipe = "dino"

    for count in (0, 1, 5):
        changes = {"local": {"count": count}}
        assert len(build_recipe(config(recipe_args=changes), Crops).views) == 2 + count
    with pytest.raises(ConfigError, match=r"local\.count must be at most 1000"):
        build_recipe(config(recipe_args={"local": {"count": 10**9}}), Crops)
    first = Recipe.of_groups(
        "mine", Group("local", View(size=8), 3), Group("global", View(size=16))
    )
    assert first.inputs()["image_size"] == 16
    assert recipe("eval", size=20).inputs()["image_size"] == 20


@pytest.mark.parametrize(
    ("name", "setting"), [("size", "image_size"), ("local_size", "local_size"), ("name", "recipe")]
)
def test_settings_are_no_fields_of_a_recipe(
    config: Callable[..., TrainConfig], name: str, setting: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^recipe_args\.{name}: that is the setting {setting}$"):
        build_recipe(config(recipe_args={name: 16}), get("simclr"))


def test_the_encoder_is_asked_for_every_size() -> None:
    made = recipe("dino", size=32, local_size=16)
    with pytest.raises(ConfigError, match=r"^local_size: .* for images of \[32, 32\], got \[16"):
        check_image_size(made, vit_micro())
    with pytest.raises(ConfigError, match=r"^image_size: .* for images of \[16, 16\], got \[32"):
        check_image_size(made, vit_micro(img_size=16))
    check_image_size(made, vit_micro(dynamic_img_size=True))
    check_image_size(made, torch.nn.Linear(1, 1))  # which has no ``check_input``
