"""Every EMA backend that runs here, against the float64 oracle: rounded once, and no worse."""

import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sslfast.kernels import ema, registry
from sslfast.kernels.ema import reference

# The interpreter is numpy, which tells of every inf - inf.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
RUNNABLE = [b.name for b in registry.candidates("ema") if b.unavailable() is None]
# Of the result: half a unit in the last place, and a whole one where the interpreter truncates.
ROUNDING = {
    torch.float32: 0.0,
    torch.float64: 0.0,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


def backend_for(name: str, teacher: list[Tensor], student: list[Tensor]):
    backend = {b.name: b for b in registry.candidates("ema")}[name]
    reason = backend.refusal(ema.problem(teacher, student))
    if reason is not None:
        pytest.skip(f"{name} refuses: {reason}")
    return backend.module


def check(name: str, teacher: list[Tensor], student: list[Tensor], momentum: float) -> None:
    """Update in place and compare with the oracle in float64 on the same (rounded) inputs."""
    m = torch.tensor(momentum, dtype=torch.float64)
    truth = [t.double().clone() for t in teacher]
    reference.update(truth, [s.double() for s in student], m)
    size = [t.double().abs() + s.double().abs() for t, s in zip(teacher, student, strict=True)]
    backend_for(name, teacher, student).update(teacher, student, m)
    for t, s, want, scale in zip(teacher, student, truth, size, strict=True):
        double = torch.float64 in (t.dtype, s.dtype)
        rounding = ROUNDING[t.dtype] * (2 if name == "triton" else 1)
        rounding = max(rounding, 2.0**-24 if t.dtype == torch.float32 else 0.0)
        bound = rounding * want.abs() + (2.0**-51 if double else 2.0**-22) * scale + 2.0**-25
        assert ((t.double() - want).abs() <= bound).all(), (t.dtype, s.dtype, t.shape, momentum)


def randn(shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("momentum", [0.3, 0.5, 0.996])
def test_all_types_and_ragged_sizes_in_one_call(name, momentum, generator) -> None:
    pairs = list(itertools.product(DTYPES, DTYPES))
    shapes = [(), (0,), (1,), (5, 3), (1023,), (1024,), (4, 2, 129), (16384,), (20011,)]
    # Every pair of types in four of the shapes, every shape in several types.
    kinds = [(t, s, shapes[(4 * n + k) % 9]) for n, (t, s) in enumerate(pairs) for k in range(4)]
    teacher = [randn(shape, t, generator) for t, _, shape in kinds]
    student = [randn(shape, s, generator) for _, s, shape in kinds]
    check(name, teacher, student, momentum)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_addresses_that_are_not_aligned(name, dtype, generator) -> None:
    """Parts of one flat buffer, as FSDP and flattened parameters are."""
    ours, theirs = randn((40000,), torch.float32, generator), randn((40000,), dtype, generator)
    cuts = [1, 2, 5, 100, 1200, 1203, 18001, 40000]
    teacher = [ours[a:b] for a, b in itertools.pairwise(cuts)]
    student = [theirs[a - 1 : b - 1] for a, b in itertools.pairwise(cuts)]
    before = ours[:1].clone()
    check(name, teacher, student, 0.9)
    assert torch.equal(ours[:1], before)


@pytest.mark.parametrize("name", RUNNABLE)
def test_layouts(name, generator) -> None:
    """Elements are paired by index, whatever their order in memory."""
    image = randn((2, 3, 4, 5), torch.float32, generator)
    teacher = [
        image.to(memory_format=torch.channels_last),
        image.to(memory_format=torch.channels_last),
        randn((7, 9), torch.float32, generator).T,
        randn((20, 20), torch.float32, generator)[:, ::2],
        randn((6, 6), torch.float32, generator),
    ]
    student = [
        randn((2, 3, 4, 5), torch.bfloat16, generator).to(memory_format=torch.channels_last),
        randn((2, 3, 4, 5), torch.float32, generator),
        randn((9, 7), torch.float32, generator),
        randn((20, 20), torch.float32, generator)[:, ::2],
        randn((6, 1), torch.float32, generator).expand(6, 6),
    ]
    check(name, teacher, student, 0.75)


@pytest.mark.parametrize("name", RUNNABLE)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_list(name: str, data: st.DataObject) -> None:
    """Property: no number of tensors, sizes, types or momentum breaks the agreement."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    kinds = data.draw(
        st.lists(
            st.tuples(st.integers(0, 3000), st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
            max_size=12,
        )
    )
    teacher = [randn((n,), t, generator) for n, t, _ in kinds]
    student = [randn((n,), s, generator) for n, _, s in kinds]
    check(name, teacher, student, data.draw(st.floats(0, 1)))


@pytest.mark.parametrize("name", RUNNABLE)
def test_ends_are_exact_and_one_leaves_the_teacher(name, generator) -> None:
    teacher, student = ([randn((2000,), torch.float32, generator)] for _ in range(2))
    module = backend_for(name, teacher, student)
    before = teacher[0].clone()
    poisoned = student[0].clone()
    poisoned[7] = math.nan
    module.update(teacher, [poisoned], torch.tensor(1.0, dtype=torch.float64))
    assert torch.equal(teacher[0], before)
    module.update(teacher, student, torch.tensor(0.0, dtype=torch.float64))
    assert torch.equal(teacher[0], student[0])


BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_momentum_0_copies_bits_whatever_the_teacher_holds(name, dtype, generator) -> None:
    """Any pattern of bits: infinities, NaN with a payload, -0, subnormal numbers."""
    words = torch.randint(-(2**63), 2**63 - 1, (300,), generator=generator)
    student = torch.cat([words, torch.full((8,), -1)]).view(dtype)
    assert student.isnan().any()
    teacher = torch.full_like(student, -math.inf)
    teacher[::3], teacher[::5] = math.nan, student[::5]
    module = backend_for(name, [teacher], [student])
    module.update([teacher], [student], torch.tensor(0.0, dtype=torch.float64))
    integers = BITS[dtype.itemsize]
    assert torch.equal(teacher.view(integers), student.view(integers))


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("momentum", [0.3, 0.5, 0.996])
def test_infinities_are_weighed_as_the_definition_says(name, momentum) -> None:
    """Equal ones stay, one alone wins, opposite ones give NaN: in vectors and their ends."""
    values = (math.inf, -math.inf, math.nan, 2.0, -0.5)
    t, s = torch.tensor(list(itertools.product(values, values)) * 41, dtype=torch.float64).T
    want = momentum * t + (1 - momentum) * s
    kinds = list(itertools.product(DTYPES, DTYPES))
    teacher, student = [t.to(a, copy=True) for a, _ in kinds], [s.to(b) for _, b in kinds]
    module = backend_for(name, teacher, student)
    module.update(teacher, student, torch.tensor(momentum, dtype=torch.float64))
    for got in teacher:
        torch.testing.assert_close(got.double(), want, rtol=2**-7, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_non_finite_in_non_finite_out(name, poison, generator) -> None:
    teacher, student = ([randn((2000,), torch.float32, generator)] for _ in range(2))
    student[0][1234] = poison
    module = backend_for(name, teacher, student)
    module.update(teacher, student, torch.tensor(0.9, dtype=torch.float64))
    wrong = (~teacher[0].isfinite()).nonzero().flatten()
    assert wrong.tolist() == [1234]


@pytest.mark.parametrize("name", RUNNABLE)
def test_bitwise_repeatable(name, generator) -> None:
    student = [randn((n,), torch.bfloat16, generator) for n in (3, 70000, 5)]
    start = [randn((n,), torch.float32, generator) for n in (3, 70000, 5)]

    def run() -> list[Tensor]:
        teacher = [t.clone() for t in start]
        module = backend_for(name, teacher, student)
        module.update(teacher, student, torch.tensor(0.99, dtype=torch.float64))
        return teacher

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_same_bits_with_any_number_of_threads(generator) -> None:
    sizes = (100003, 1, 77, 250001)
    student = [randn((n,), torch.float32, generator) for n in sizes]
    start = [randn((n,), torch.float32, generator) for n in sizes]
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            teacher = [t.clone() for t in start]
            module = backend_for("cpu", teacher, student)
            module.update(teacher, student, torch.tensor(0.99, dtype=torch.float64))
            results.append(teacher)
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


CONVERSIONS = """
import torch
from sslfast.kernels import registry
from sslfast.kernels.ema import cpu
from sslfast.kernels.extension import extension
zero = torch.tensor(0.0, dtype=torch.float64)
def equal(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a[~a.isnan()], b[~b.isnan()])
for dtype in (torch.float16, torch.bfloat16):
    every = torch.arange(-2**15, 2**15, dtype=torch.int16).view(dtype)
    wide = torch.zeros(len(every))
    cpu.update([wide], [every], zero)
    assert equal(wide, every.float()), dtype
    bits = torch.randint(-2**31, 2**31, (400000,)).to(torch.int32).view(torch.float32)
    near = torch.cat([every.float(), torch.randn(100000) * 1e-6, torch.randn(100000) * 7e4])
    halfway = near * (1 + 2.0**-11)
    values = torch.cat([bits, near, halfway, near * (1 + 2.0**-9)])
    narrow = torch.zeros(len(values), dtype=dtype)
    cpu.update([narrow], [values], zero)
    assert equal(narrow, values.to(dtype)), dtype
print(extension().instruction_set())
"""


@pytest.mark.parametrize("level", ["baseline", "v3", "v4"])
def test_16_bit_conversions_at_every_level(level: str) -> None:
    """As PyTorch's, bit for bit, also on processors without instructions for them."""
    done = subprocess.run(
        [sys.executable, "-c", CONVERSIONS],
        env={**os.environ, "SSLFAST_CPU_LEVEL": level},
        capture_output=True,
        text=True,
        check=False,
    )
    if "is not a level of this processor" in done.stderr or "was not built" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == level
