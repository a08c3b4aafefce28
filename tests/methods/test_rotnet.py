"""RotNet: exact turns of every image, and a four-way guess of them."""

import math

import pytest
import torch
from torch import Tensor, nn

from sslfast import methods, models
from sslfast.data.batch import Batch
from sslfast.methods.base import Context
from sslfast.methods.rotnet import rotations

CTX = Context(0, 0, 1)


def batch_of(ids: list[int], size: tuple[int, int] = (8, 8)) -> Batch:
    images = torch.randn(8, 3, *size, generator=torch.Generator().manual_seed(5)).double()
    return Batch((images[ids],), torch.tensor(ids))


def small() -> methods.base.Method:
    torch.manual_seed(0)
    # Without batch norm, which would let the images of a batch see each other.
    encoder = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5))
    encoder.num_features = 5
    return methods.create("rotnet", encoder).double()


def turned(images: Tensor, turns: int) -> Tensor:
    """Pixel by pixel: a turn takes the pixel at (y, x) to (S - 1 - x, y)."""
    side = images.shape[-1]
    for _ in range(turns):
        moved = torch.empty_like(images)
        for y in range(side):
            for x in range(side):
                moved[..., side - 1 - x, y] = images[..., y, x]
        images = moved
    return images


def test_turns_are_exact() -> None:
    images = batch_of([1, 4]).views[0]
    found = rotations(images)
    assert found.shape == (4, 2, 3, 8, 8)
    for turns in range(4):
        assert torch.equal(found[turns], turned(images, turns))


def test_the_loss_is_the_cross_entropy_of_all_turns() -> None:
    method, batch = small(), batch_of([1, 4, 6])
    found = method(batch, CTX)
    losses, right = [], []
    for image in batch.views[0]:
        for turns in range(4):
            logits = method.classifier(method.encoder(turned(image[None], turns)))[0]
            losses.append(logits.logsumexp(0) - logits[turns])
            right.append(float(logits.argmax() == turns))
    torch.testing.assert_close(found["loss"].double(), torch.stack(losses).mean())
    assert math.isclose(found["rotation_accuracy"], sum(right) / 12, rel_tol=1e-6)
    assert not found["rotation_accuracy"].requires_grad
    found["loss"].backward()
    assert all(p.grad.abs().max() > 0 for p in method.parameters())


def test_each_image_counts_alone() -> None:
    """So the mean over ranks or micro-batches is the loss of the whole batch."""
    method = small()
    whole, *halves = (method(batch_of(ids), CTX)["loss"] for ids in ([0, 1, 2, 3], [0, 1], [2, 3]))
    torch.testing.assert_close(whole, sum(halves) / 2)
    # A chunk's rows stay with their images.
    whole = method.encode(batch_of([0, 1, 2]), CTX)
    torch.testing.assert_close(whole[:2], method.encode(batch_of([0, 1]), CTX))


def test_pictures_show_the_turns() -> None:
    batch = batch_of([2, 3])
    pictures = small().pictures(batch, CTX)
    assert torch.equal(pictures["original"], batch.views[0])
    assert torch.equal(pictures["180 degrees"], batch.views[0].flip(-2, -1))


def test_wrong_views_are_explained() -> None:
    with pytest.raises(ValueError, match="rotnet turns square views, got 8 x 12"):
        small()(batch_of([1], (8, 12)), CTX)
    views = batch_of([1]).views
    with pytest.raises(ValueError, match="learns from one view, got 2"):
        small()(Batch((*views, *views), torch.tensor([1])), CTX)
    video = models.create("vit_micro", num_frames=4, depth=1)
    with pytest.raises(ValueError, match="build the encoder without num_frames"):
        methods.create("rotnet", video)
