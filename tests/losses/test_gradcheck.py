"""Analytic gradients of every functional form against finite differences, in float64."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from sslfast.functional import clip, info_nce, linear_cross_entropy, ntxent, siglip, supcon

N, D = 5, 3
LABELS = torch.tensor([0, 1, 0, 1, 2])
TARGETS = torch.tensor([3, 0, -100, 6, 3])


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


# Name -> the form of its tensors, and their shapes; numbers are learned temperatures and scales.
FORMS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...] | float, ...]]] = {
    "ntxent": (ntxent, ((N, D), (N, D), 0.4)),
    "ntxent as given": (partial(ntxent, normalize=False), ((N, D), (N, D), 0.9)),
    "ntxent decoupled": (partial(ntxent, decoupled=True), ((N, D), (N, D), 0.4)),
    "ntxent debiased": (partial(ntxent, debiased=0.05), ((N, D), (N, D), 0.8)),
    "ntxent smoothed": (partial(ntxent, label_smoothing=0.1), ((N, D), (N, D), 0.4)),
    "clip": (clip, ((N, D), (N, D), 2.0)),
    "siglip": (siglip, ((N, D), (N, D), 2.0, -1.0)),
    "info_nce": (
        lambda q, k, t, **options: info_nce(q, k, None, t, **options),
        ((N, D), (N, D), 0.4),
    ),
    "info_nce unpaired": (info_nce, ((N, D), (N, D), (7, D), 0.4)),
    "info_nce paired": (
        partial(info_nce, negative_mode="paired"),
        ((N, D), (N, D), (N, 4, D), 0.4),
    ),
    "supcon": (lambda z, t, **options: supcon(z, LABELS, t, **options), ((N, D), 0.4)),
    "linear_cross_entropy": (
        lambda x, w, b, **options: linear_cross_entropy(
            x, w, TARGETS, b, label_smoothing=0.1, **options
        ),
        ((N, D), (7, D), (7,)),
    ),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", FORMS)
def test_gradcheck(name: str, reduction: str) -> None:
    form, inputs = FORMS[name]
    tensors = [number(x) if isinstance(x, float) else leaf(*x) for x in inputs]
    assert torch.autograd.gradcheck(partial(form, reduction=reduction), tensors)
