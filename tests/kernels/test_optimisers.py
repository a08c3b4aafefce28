"""Every AdamW and LARS backend that runs here, against the float64 oracles."""

import itertools

import pytest
import torch
from torch import Tensor

from sslfast.kernels import adamw, lars, registry

# The interpreter is numpy, which tells of every inf - inf.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

OPS = {"adamw": adamw, "lars": lars}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Half a unit in the last place; float32: a few roundings.
ROUNDING = {
    torch.float32: 2.0**-21,
    torch.float64: 2.0**-50,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
RUNNABLE = [(op, b.name) for op in OPS for b in registry.candidates(op) if b.unavailable() is None]
GROUPS = {
    "adamw": [[1e-3, 0.9, 0.999, 1e-8, 1e-2], [3e-2, 0.8, 0.95, 1e-6, 0.0]],
    "lars": [[1e-1, 0.9, 1e-2, 0.0], [3e-2, 0.8, 0.0, 1.0]],
}
KINDS = list(itertools.product(DTYPES, (*DTYPES, None)))
SIZES = (0, 1, 5, 1024, 1029, 17001)


def randn(n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(n, generator=generator, dtype=torch.float64).to(dtype)


def make(op: str, generator: torch.Generator, shift: int = 0):
    """Tensors of every kind and size; with ``shift`` they begin that far into their memory."""
    # Every kind in two of the sizes.
    kinds = [(SIZES[(n + 3 * k) % 6], p, e) for k in range(2) for n, (p, e) in enumerate(KINDS)]

    def column(types: list[torch.dtype | None], positive: bool = False) -> list[Tensor | None]:
        made = []
        for (n, _, _), dtype in zip(kinds, types, strict=True):
            x = None if dtype is None else randn(n + shift, dtype, generator)[shift:]
            made.append(x.abs_() if positive and x is not None else x)
        return made

    own = [p for _, p, _ in kinds]
    params, grads, first = (column(own) for _ in range(3))
    teachers = column([e for _, _, e in kinds])
    groups = [n % 2 for n in range(len(kinds))]
    if op == "adamw":
        steps = [torch.tensor(float(1 + n % 7)) for n in range(len(kinds))]
        second = column(own, positive=True)
        return adamw.Tensors(params, grads, first, second, steps, teachers, groups)
    buffers = [b if n % 3 else None for n, b in enumerate(first)]
    return lars.Tensors(params, grads, buffers, teachers, groups)


def double(tensors):
    def column(values):
        return [None if v is None else v.double().clone() for v in values]

    columns = [column(c) for c in tensors.columns]
    if isinstance(tensors, adamw.Tensors):
        columns[4] = list(tensors.steps)
        return adamw.Tensors(*columns, tensors.groups)
    return lars.Tensors(columns[0], columns[1], columns[2], columns[5], tensors.groups)


def run(op, backend: str, tensors, momentum: float, generator, factor: float = 0.7) -> None:
    control = torch.tensor([factor, momentum], dtype=torch.float64)
    trust = torch.rand(len(tensors.params), generator=generator, dtype=torch.float64)
    extra = () if op == "adamw" else (trust,)
    groups = torch.tensor(GROUPS[op], dtype=torch.float64)
    module = {b.name: b for b in registry.candidates(op)}[backend].module
    module.step(tensors, groups, control, *extra)


@pytest.mark.parametrize(("op", "name"), RUNNABLE)
@pytest.mark.parametrize(("momentum", "shift"), [(0.996, 0), (0.3, 1)])
def test_all_types_groups_and_sizes_in_one_call(op, name, momentum, shift, generator) -> None:
    tensors = make(op, generator, shift)
    truth = double(tensors)
    state = generator.get_state()
    run(op, "reference", truth, momentum, generator)
    generator.set_state(state)
    run(op, name, tensors, momentum, generator)
    for got, want in zip(tensors.columns[:4], truth.columns[:4], strict=True):
        for n, (x, y) in enumerate(zip(got, want, strict=True)):
            if x is not None:
                bound = ROUNDING[x.dtype] * (2 if name == "triton" else 1) * (y.abs() + 1)
                assert ((x.double() - y).abs() <= bound).all(), (n, x.dtype, len(x))
    for p, e, start in zip(tensors.params, tensors.teachers, truth.teachers, strict=True):
        if e is not None and start is not None:
            # The teacher follows the parameter as it is stored, rounded.
            bound = (2 * ROUNDING[p.dtype] + 2 * ROUNDING[e.dtype]) * (start.abs() + 4)
            assert ((e.double() - start).abs() <= bound).all()


@pytest.mark.parametrize(("op", "name"), RUNNABLE)
def test_the_teacher_follows_what_is_stored(op, name, generator) -> None:
    """The same bits as an update of its own after the step, infinities too; none at momentum 1."""
    for momentum in (0.9, 1.0, 0.0):
        tensors = make(op, generator)
        for e in tensors.teachers:
            if e is not None:
                e[-1:] = -torch.inf
        before = [None if e is None else e.clone() for e in tensors.teachers]
        run(op, name, tensors, momentum, generator)
        pairs = [(b, p) for b, p in zip(before, tensors.params, strict=True) if b is not None]
        module = {b.name: b for b in registry.candidates("ema")}[name].module
        m = torch.tensor(momentum, dtype=torch.float64)
        module.update([b for b, _ in pairs], [p for _, p in pairs], m)
        for mine, theirs in zip(tensors.teachers, before, strict=True):
            assert mine is None or torch.equal(mine, theirs)  # so there is no NaN


@pytest.mark.parametrize(("op", "name"), RUNNABLE)
def test_a_negative_factor_leaves_the_step_out(op, name, generator) -> None:
    tensors = make(op, generator)
    tensors.grads[0].fill_(float("nan"))
    before = [x.clone() for c in tensors.columns for x in c if x is not None]
    run(op, name, tensors, 0.9, generator, factor=-1.0)
    after = [x for c in tensors.columns for x in c if x is not None]
    for x, y in zip(before, after, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("op", "name"), RUNNABLE)
def test_nothing_to_do(op, name, generator) -> None:
    empty = adamw.Tensors(*[[]] * 7) if op == "adamw" else lars.Tensors(*[[]] * 5)
    run(op, name, empty, 0.9, generator)


@pytest.mark.parametrize("op", OPS)
def test_same_bits_with_any_number_of_threads(op, generator) -> None:
    if {b.name: b for b in registry.candidates(op)}["cpu"].unavailable():
        pytest.skip("the extension was not built")
    state, threads, results = generator.get_state(), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            generator.set_state(state)
            tensors = make(op, generator)
            run(op, "cpu", tensors, 0.99, generator)
            results.append([x for c in tensors.columns for x in c if x is not None])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
