"""Arguments of the wrong kind or out of range are refused by name, wherever they are given."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import pytest
import torch
from torch import Tensor

from sslfast import data, losses, masking, methods, models
from sslfast._arguments import (
    BadArgument,
    Part,
    PositiveFloat,
    PositiveInt,
    Probability,
    Range,
    Rate,
    check_arguments,
    checked,
)


class Reader(Protocol):
    def read(self) -> bytes: ...


@checked
def everything(
    number: float = 0.0,
    count: PositiveInt = 1,
    maybe: PositiveInt | None = None,
    rate: Rate = 0.0,
    part: Part = 1.0,
    even: Annotated[int, Range(2, 8)] = 2,
    pair: tuple[float, float] = (0.0, 1.0),
    widths: Sequence[PositiveInt] = (),
    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 1,
    choice: Literal["a", "b"] = "a",
    empty: Literal["", "x"] = "",
    switch: bool = False,
    name: str = "",
    table: dict[str, Any] | None = None,
    tensor: float | Tensor = 0.0,
    anything: Any = None,
    protocol: Reader | None = None,
    unknown=None,
) -> str:
    return "taken"


@pytest.mark.parametrize(
    ("name", "good", "bad", "wanted"),
    [
        ("number", [1, 1.5, -2, np.float32(2)], [math.nan, math.inf, "1", None, True], "a finite"),
        ("count", [1, np.int64(3), 2**63 - 1], [0, -1], "at least 1"),
        ("count", [5], [1.0, "1", True, None, [1]], "an integer"),
        ("count", [5], [2**63, 10**30], "at most 9223372036854775807"),
        ("maybe", [None, 2], [0], "at least 1, or None"),
        ("maybe", [None, 2], [0.5, "x"], "an integer or None"),
        ("rate", [0, 0.5], [1, 1.0], "less than 1"),
        ("part", [0.1, 1], [0, -0.1], "more than 0"),
        ("even", [2, 8], [9], "at most 8"),
        ("pair", [(1, 2), [0.5, 1.0]], [1.0, (1,), (1, 2, 3), "ab"], "a list of 2 values"),
        ("pair", [(1, 2)], [(1, math.nan), ("a", 1)], "a list of 2 values, each a finite number"),
        ("widths", [(), [1, 2]], [[0]], "a list of values, each at least 1"),
        ("size", [3, (3, 4)], [(0, 4), 0], "at least 1"),
        ("choice", ["a", "b"], ["c", None, 1, ["a"]], "one of a, b"),
        ("switch", [True, np.bool_(False)], [1, 0, "true", None], "true or false"),
        ("empty", ["", "x"], ["y"], 'one of "", x'),
        ("name", ["x"], [b"x", 1, None], "text"),
        ("table", [{}, None], [[], "x"], "a dict or None"),
        (
            "tensor",
            [1.0, torch.zeros(())],
            ["x", None, math.nan],
            "a finite number or a torch.Tensor",
        ),
        ("anything", [object(), math.nan], [], ""),
        ("protocol", [object(), None, 3], [], ""),
        ("unknown", [object(), math.nan], [], ""),
    ],
)
def test_what_fits(name: str, good: list[Any], bad: list[Any], wanted: str) -> None:
    for value in good:
        assert everything(**{name: value}) == "taken"
    for value in bad:
        with pytest.raises(BadArgument, match=f"^{name} must be .*{wanted}.*, got ") as caught:
            everything(**{name: value})
        assert caught.value.name == name


def test_positions_defaults_and_other_errors_are_those_of_the_function() -> None:
    assert everything(1.0, 2, None) == "taken"
    with pytest.raises(BadArgument, match="count must be at least 1, got 0"):
        everything(1.0, 0)
    with pytest.raises(TypeError, match=r"everything.*unexpected keyword argument 'cuont'"):
        everything(cuont=1)
    check_arguments(everything, {"maybe": None, "of another": 1})
    with pytest.raises(BadArgument, match="maybe must be an integer or null, got"):
        check_arguments(everything, {"maybe": "x"}, none="null")


def test_long_values_are_cut_and_objects_named_by_their_class() -> None:
    with pytest.raises(BadArgument) as caught:
        everything(count="x" * 10_000)
    assert len(str(caught.value)) < 300
    with pytest.raises(BadArgument, match=r"got a Tensor$"):
        everything(count=torch.zeros(3))


def test_compiled_code_is_not_checked_and_stays_one_graph() -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def call(x: Tensor) -> Tensor:
        everything(0.5, 2, rate=0.25)
        return x + 1

    assert call(torch.zeros(1)) == 1


@functools.cache
def vit() -> models.VisionTransformer:
    return models.vit_micro(depth=1)


MAKERS: dict[str, Callable[..., object]] = {
    "vit_micro": lambda **k: models.create("vit_micro", **{"depth": 1, **k}),
    "convnet": lambda **k: models.create("convnet_small", **k),
    "mae": lambda **k: methods.create("mae", vit(), **k),
    "ijepa": lambda **k: methods.create("ijepa", vit(), **k),
    "simmim": lambda **k: methods.create("simmim", vit(), **k),
    "simclr": lambda **k: methods.create("simclr", models.convnet_small(width=4, depth=1), **k),
    "view": data.View,
    "recipe": lambda **k: data.recipe("simclr", **k),
    "random_mask": lambda **k: masking.random_mask(2, 9, seed=0, **k),
    "block_mask": lambda **k: masking.block_mask(2, **{"grid": (6, 6), "seed": 0, **k}),
}


@pytest.mark.parametrize(
    ("maker", "name", "values"),
    [
        ("vit_micro", "depth", [0, -1, 10**9]),
        ("vit_micro", "embed_dim", [0, 2**40, "x"]),
        ("vit_micro", "img_size", [0, (32,), "32"]),
        ("vit_micro", "mlp_ratio", [0, 1e30, math.nan]),
        ("vit_micro", "init_values", [-1, math.inf]),
        ("vit_micro", "reg_tokens", [-1, 1.5]),
        ("vit_micro", "qkv_bias", ["false", 1]),
        ("vit_micro", "attn_drop_rate", [1.5, math.nan]),
        ("vit_micro", "num_frames", [0, "16"]),
        ("convnet", "width", [0, 2**40, 1.5]),
        ("convnet", "depth", [0, 64]),
        ("mae", "mask_ratio", [math.nan, "x", None, -0.1]),
        ("mae", "decoder_dim", [0, -8, 16.0]),
        ("mae", "decoder_depth", [0, -1]),
        ("mae", "norm_pix", ["false"]),
        ("ijepa", "predictor_dim", [0]),
        ("ijepa", "momentum", [1.5, math.nan]),
        ("simmim", "mask_patches", [0, 1.5]),
        ("simclr", "temperature", [0, -0.1, math.nan, math.inf, "x"]),
        ("simclr", "hidden_dim", [0, -1]),
        ("simclr", "out_dim", [0, 1.5]),
        ("view", "size", [0, 1e9, "32"]),
        ("view", "brightness", [math.nan, -1]),
        ("view", "mean", [0.5, (0.5,), (math.nan,) * 3]),
        ("recipe", "crop_scale", [0.5, (0.5, 0.2), (0.5, math.nan), (0.5, 2.0)]),
        ("recipe", "num_frames", [0]),
        ("random_mask", "mask_ratio", [math.nan, math.inf, "x"]),
        ("random_mask", "sample_ids", [3, [0, 1]]),
        ("random_mask", "stream", [1.5, -1, 2**16]),
        ("block_mask", "grid", [6, (6,), (0, 6), "ab"]),
        ("block_mask", "min_aspect", [0, 2, math.nan]),
    ],
)
def test_every_constructor_names_what_it_refuses(maker: str, name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(BadArgument, match=f"^{name} must "):
            MAKERS[maker](**{name: value})


def test_probabilities_and_widths_are_documented_ranges() -> None:
    assert repr(Probability) == "typing.Annotated[float, in [0, 1]]"
    assert repr(PositiveFloat) == "typing.Annotated[float, more than 0]"
    assert repr(PositiveInt) == "typing.Annotated[int, at least 1]"


def test_an_object_may_be_made_in_compiled_code() -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def call(x: Tensor) -> Tensor:
        return losses.SupConLoss(0.3)(x, torch.arange(4) % 2)

    x = torch.randn(4, 3)
    torch.testing.assert_close(call(x), losses.SupConLoss(0.3)(x, torch.arange(4) % 2))
