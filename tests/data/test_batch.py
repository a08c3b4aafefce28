"""A batch's views may be any nest of tensors."""

from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sslfast._nests import join_tensors, map_tensors
from sslfast.data import Batch


class Pair(NamedTuple):
    image: Tensor
    text: dict[str, Any]


class Mapping(UserDict):  # type: ignore[type-arg]
    """Neither a dict nor known to torch, as the outputs of tokenizers are."""


def views(rows: int, first: int = 0) -> Pair:
    ids = torch.arange(first, first + rows)
    inner = Mapping(ids=ids, more=[ids.float()])
    return Pair(ids[:, None].double(), {"inner": inner, "captions": [f"no. {i}" for i in ids]})


def test_joined_batches_keep_their_form() -> None:
    parts = [Batch(views(n, at), torch.arange(at, at + n)) for n, at in ((2, 0), (3, 2))]
    whole = Batch.join(parts)
    assert isinstance(whole.views, Pair)
    inner = whole.views.text["inner"]
    assert isinstance(inner, Mapping)
    assert whole.views.image.flatten().tolist() == [0, 1, 2, 3, 4]
    assert inner["ids"].tolist() == inner["more"][0].tolist() == whole.sample_ids.tolist()
    assert whole.views.text["captions"] == [f"no. {i}" for i in range(5)]
    assert parts[0].views.text["inner"]["ids"].tolist() == [0, 1]  # the parts are as they were


def test_every_tensor_is_moved() -> None:
    batch = Batch(views(2), torch.arange(2), torch.zeros(2)).to("meta")
    found: list[Tensor] = [batch.sample_ids]
    map_tensors((batch.views, batch.labels), lambda tensor: found.append(tensor) or tensor)
    assert [tensor.device.type for tensor in found] == ["meta"] * 5
    assert batch.views.text["captions"] == ["no. 0", "no. 1"]


def test_rows_of_strings_are_cut_as_those_of_tensors() -> None:
    def last(rows: Any) -> Any:
        return rows[-1:]

    cut = map_tensors(views(3), last, last)
    assert cut.image.tolist() == [[2.0]]
    assert cut.text["captions"] == ["no. 2"]


@pytest.mark.parametrize("other", [(torch.ones(1),), {"a": torch.ones(1)}])
def test_nests_of_another_form_are_not_joined(other: Any) -> None:
    with pytest.raises((ValueError, KeyError)):
        join_tensors([(torch.ones(1), torch.ones(1)), other])


def test_dicts_are_joined_by_key() -> None:
    a, b = OrderedDict(x=torch.ones(1), y=torch.zeros(1)), {"y": torch.zeros(2), "x": torch.ones(2)}
    joined = join_tensors([a, OrderedDict(b)])
    assert list(joined) == ["x", "y"]
    assert joined["x"].tolist() == [1, 1, 1]
