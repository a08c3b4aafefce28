"""Every backend that runs here, against the product with the matrix of equal labels in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sslfast
from sslfast.kernels import registry
from sslfast.kernels.class_sums import reference, tiled
from sslfast.ops.class_sums import class_sizes, class_sums

RUNNABLE = [b.name for b in registry.candidates("class_sums") if b.unavailable() is None]


def rows(m: int, d: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(m, d, generator=generator)
    return x, torch.randint(-classes, classes, (m,), generator=generator)


@pytest.mark.parametrize("name", RUNNABLE)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_shape(name: str, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    m, d, classes = (data.draw(st.integers(1, most)) for most in (700, 9, 40))
    x, labels = rows(m, d, classes, generator)
    if data.draw(st.booleans()):
        labels = labels.int()
    truth = reference.sums(x.double(), labels)
    with sslfast.use_backend(name):
        found = class_sums(x, labels)
        assert torch.equal(class_sums(x, labels), found)
        torch.testing.assert_close(class_sums(x.double(), labels), truth)
    assert found.dtype == torch.float32
    assert (found - truth).norm() <= 1e-6 * truth.norm()
    assert torch.equal(class_sizes(labels), (labels[:, None] == labels).sum(1))


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("m", [0, 1, tiled.WIDTH, tiled.WIDTH**2 + 1])
def test_one_class_and_a_class_each(name: str, m: int, generator: torch.Generator) -> None:
    x, _ = rows(m, 5, 1, generator)
    with sslfast.use_backend(name):
        whole = x.sum(0).expand(m, 5)
        torch.testing.assert_close(class_sums(x, torch.ones(m, dtype=torch.int64)), whole)
        assert torch.equal(class_sums(x, torch.randperm(m, generator=generator)), x)


# The oracle's product multiplies all rows, by 0 too.
@pytest.mark.parametrize("name", [name for name in RUNNABLE if name != "reference"])
def test_non_finite_rows_spoil_their_class_alone(name: str, generator: torch.Generator) -> None:
    x, labels = rows(300, 3, 4, generator)
    x[7] = torch.nan
    with sslfast.use_backend(name):
        found = class_sums(x, labels)
    assert torch.equal(found.isnan().all(1), labels == labels[7])
    assert torch.equal(found.isnan().any(1), labels == labels[7])


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_op(name: str, generator: torch.Generator) -> None:
    x, labels = rows(40, 3, 4, generator)
    x = x.double().requires_grad_()
    with sslfast.use_backend(name):
        torch.library.opcheck(class_sums, (x, labels))
        assert torch.autograd.gradcheck(lambda x: class_sums(x, labels), x)


def test_a_tree_rounds_less_than_a_running_sum(generator: torch.Generator) -> None:
    x = torch.rand(20_000, 1, generator=generator)
    found = tiled.sums(x, torch.zeros(20_000, dtype=torch.int64))[0]
    assert abs(found.item() - x.double().sum().item()) <= 1e-6 * found.item()
