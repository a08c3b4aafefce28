"""Crops of equal size pass the encoder together, and every view gets its own outputs back."""

import torch
from torch import Tensor, nn

from sslfast.methods.views import encode_crops


def crops(*sizes: int, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, 3, size, size, generator=generator) for size in sizes]


def test_every_view_gets_what_it_would_get_alone() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    views = crops(16, 8, 16, 8, 8)
    found = encode_crops(module, views)
    assert len(found) == len(views)
    for view, output in zip(views, found, strict=True):
        torch.testing.assert_close(output, module(view))


def test_one_forward_pass_for_each_size_whatever_the_order() -> None:
    seen: list[tuple[int, ...]] = []

    def module(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x.mean((1, 2, 3))

    views = crops(8, 16, 8, 16, 8)
    found = encode_crops(module, views)
    assert seen == [(9, 3, 8, 8), (6, 3, 16, 16)]
    for view, output in zip(views, found, strict=True):
        torch.testing.assert_close(output, view.mean((1, 2, 3)))


def test_nests_of_outputs_and_batches_of_their_own_length() -> None:
    views = [crops(8, count=2)[0], crops(8, count=5)[0]]
    found = encode_crops(lambda x: {"pixels": x.flatten(1), "mean": x.mean((1, 2, 3))}, views)
    for view, output in zip(views, found, strict=True):
        torch.testing.assert_close(output["pixels"], view.flatten(1))
        torch.testing.assert_close(output["mean"], view.mean((1, 2, 3)))


def test_batch_norm_sees_the_views_of_a_size_as_one_batch() -> None:
    views = crops(8, 8)
    first, second = encode_crops(nn.BatchNorm2d(3, affine=False), views)
    torch.testing.assert_close(
        torch.cat((first, second)), nn.BatchNorm2d(3, affine=False)(torch.cat(views))
    )
