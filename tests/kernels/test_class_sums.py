"""Every backend that runs here, against the product with the matrix of equal classes in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sslfast
from sslfast.kernels import registry
from sslfast.kernels.class_sums import reference, tiled
from sslfast.kernels.class_sums.op import class_sums, classes_of, in_pairs

RUNNABLE = [b.name for b in registry.candidates("class_sums") if b.unavailable() is None]


def rows(m: int, d: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(m, d, generator=generator)
    return x, classes_of(torch.randint(-count, count, (m,), generator=generator))[0]


@pytest.mark.parametrize("name", RUNNABLE)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_shape(name: str, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    m, d, count = (data.draw(st.integers(1, most)) for most in (700, 9, 40))
    x, classes = rows(m, d, count, generator)
    truth = reference.sums(x.double(), classes)
    with sslfast.use_backend(name):
        found = class_sums(x, classes)
        assert torch.equal(class_sums(x, classes), found)
        torch.testing.assert_close(class_sums(x.double(), classes), truth)
    assert found.dtype == torch.float32
    assert (found - truth).norm() <= 1e-6 * truth.norm()


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("m", [0, 1, tiled.WIDTH, tiled.WIDTH**2 + 1])
def test_one_class_and_a_class_each(name: str, m: int, generator: torch.Generator) -> None:
    x, _ = rows(m, 5, 1, generator)
    with sslfast.use_backend(name):
        whole = x.sum(0).expand(m, 5)
        torch.testing.assert_close(class_sums(x, torch.zeros(m, dtype=torch.int64)), whole)
        assert torch.equal(class_sums(x, torch.randperm(m, generator=generator)), x)


# The oracle's product multiplies all rows, by 0 too.
@pytest.mark.parametrize("name", [name for name in RUNNABLE if name != "reference"])
def test_non_finite_rows_spoil_their_class_alone(name: str, generator: torch.Generator) -> None:
    x, classes = rows(300, 3, 4, generator)
    x[7] = torch.nan
    with sslfast.use_backend(name):
        found = class_sums(x, classes)
    assert torch.equal(found.isnan().all(1), classes == classes[7])
    assert torch.equal(found.isnan().any(1), classes == classes[7])


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_op(name: str, generator: torch.Generator) -> None:
    x, classes = rows(40, 3, 4, generator)
    x = x.double().requires_grad_()
    with sslfast.use_backend(name):
        torch.library.opcheck(class_sums, (x, classes))
        assert torch.autograd.gradcheck(lambda x: class_sums(x, classes), x)


def test_a_tree_rounds_less_than_a_running_sum(generator: torch.Generator) -> None:
    x = torch.rand(20_000, 1, generator=generator)
    found = tiled.sums(x, torch.zeros(20_000, dtype=torch.int64))[0]
    assert abs(found.item() - x.double().sum().item()) <= 1e-6 * found.item()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_numbers_and_sizes_of_classes(dtype: torch.dtype, generator: torch.Generator) -> None:
    labels = torch.randint(-9, 9, (50,), generator=generator).to(dtype)
    classes, sizes = classes_of(labels)
    equal = labels[:, None] == labels
    assert torch.equal(classes[:, None] == classes, equal)
    assert torch.equal(sizes, equal.sum(1))
    assert 0 <= classes.min() <= classes.max() < 50


@pytest.mark.parametrize(("m", "classes"), [(1, 1), (2, 2), (9, 1), (24, 12), (31, 7), (40, 60)])
def test_in_pairs_as_many_as_there_can_be(m: int, classes: int) -> None:
    labels = torch.randint(-classes, classes, (m,))
    order = in_pairs(*classes_of(labels))
    assert order.sort().values.tolist() == list(range(m))
    half = m // 2
    together = labels[order[:half]] == labels[order[half : 2 * half]]
    assert together.sum() == (labels.unique(return_counts=True)[1] // 2).sum()
