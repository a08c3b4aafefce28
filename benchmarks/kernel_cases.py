"""What the GPU tests and benchmarks call every Triton backend with, to compile it beforehand.

A case calls a backend of an op on tensors of torch's "meta" device, under ``launches.recording``:
sizes, dtypes, absent arguments and alignments decide what is compiled, values do not. A new backend
of a known op needs nothing here; a new op needs a function in ``CASES``.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.launches import Launch, distinct, recording
from sslfast.kernels import (
    adamw,
    cross_correlation,
    lars,
    linear_cross_entropy,
    prototype_cross_entropy,
    registry,
    sigreg,
)
from sslfast.kernels import similarity_softmax as softmax
from sslfast.kernels.grouped_softmax import Groups
from sslfast.kernels.matryoshka_softmax import Prefixes
from sslfast.kernels.similarity_softmax import Pairing
from sslfast.kernels.unit_rows import Positives

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
LABELS = {F16: "fp16", BF16: "bf16", F32: "fp32", F64: "fp64"}
DTYPES = (BF16, F16, F32)

SIX = (16, 32, 64, 128, 256, 512)  # prefixes

Case = tuple[str, Callable[[Any], object]]  # what it is, and a call of a backend


def empty(*shape: int, dtype: torch.dtype = F32, offset: int = 0) -> Tensor:
    """A tensor of sizes alone; its address is ``offset`` elements from an aligned one."""
    count = torch.Size(shape).numel()
    return torch.empty(offset + count, dtype=dtype, device="meta")[offset:].view(shape)


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Of float32 products: "ieee" or "tf32"."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def _in(precision: str, call: Callable[..., object], *given: Any) -> Callable[[Any], object]:
    def run(backend: Any) -> object:
        with arithmetic(precision):
            return call(backend, *given)

    return run


def _matrices(dims: Sequence[int], tf32: Sequence[int] = ()) -> Iterator[tuple[str, Any, int, str]]:
    """Label, dtype, D and arithmetic of all operands."""
    for dim in dims:
        for dtype in DTYPES:
            yield f"{LABELS[dtype]} D={dim}", dtype, dim, "ieee"
        if dim in tf32:
            yield f"tf32 D={dim}", F32, dim, "tf32"


def _softmax(backend: Any, x: Tensor, y: Tensor | None, sides: str) -> None:
    m = len(x)
    pairing = Pairing(m, m // 2, leave_out_self=True) if y is None else Pairing(m)
    scale = empty()
    lse, _, columns = backend.forward(x, y, scale, pairing, sides != "rows")
    row = None if sides == "columns" else (lse, torch.empty_like(lse))
    column = None if sides == "rows" else (columns, torch.empty_like(columns))
    if y is not None and backend.FEATURES.one_pass(softmax.problem(x, y, pairing)):
        backend.backward_both(x, y, scale, pairing, row, column, torch.empty_like(lse))
    backend.backward(x, y, scale, pairing, row, column)


def similarity_softmax() -> Iterator[Case]:
    """Log-sum-exps, and gradients from statistics of rows, of columns, of both."""
    dims = 64, 128, 256, 512, 123, 300  # those that are padded come after what they become
    for label, dtype, dim, precision in _matrices(dims, tf32=dims):
        symmetric = empty(252, dim, dtype=dtype), None, "both"
        yield f"both {label}", _in(precision, _softmax, *symmetric)
        for sides in ("both", "rows", "columns"):
            given = empty(252, dim, dtype=dtype), empty(507, dim, dtype=dtype), sides
            yield f"{sides} of two {label}", _in(precision, _softmax, *given)
    for m in (8192, 32768, 131072):  # the benchmarks' own, where columns are split or not
        given = empty(m, 128, dtype=BF16), None, "both"
        yield f"both bf16 D=128 M={m}", _in("ieee", _softmax, *given)
    for label, dtype, dim, precision in _matrices((512, 768), tf32=(512,)):  # large tiles
        for n in (None, 9000):
            other = None if n is None else empty(n, dim, dtype=dtype)
            given = empty(8192, dim, dtype=dtype), other, "both"
            yield f"both{' of two' if n else ''} large {label}", _in(precision, _softmax, *given)


def _groups(backend: Any, x: Tensor, y: Tensor | None, masked: bool) -> None:
    scale, ids = empty(), [empty(len(t), dtype=torch.int64) for t in (x, x if y is None else y)]
    groups = Groups(*ids, *ids, 0.9, 0) if masked else Groups(*ids)
    for sides in (False, True):
        found = backend.forward(x, y, scale, groups, sides)
        given = [(lse, torch.empty_like(lse)) for lse in found]
        if not sides:
            given[2:] = [None, None]
        backend.backward(x, y, scale, groups, *given, sides and y is not None)


def grouped_softmax() -> Iterator[Case]:
    """Log-sum-exps and gradients of rows, or of both sides; with and without ids to ignore."""
    for label, dtype, dim, precision in _matrices((128, 512), tf32=(512,)):
        for masked, m, n in itertools.product((True, False), (252, 8192), (None, 9000)):
            if dim == 512 or m == 252:
                x, y = (None if k is None else empty(k, dim, dtype=dtype) for k in (m, n))
                size = f"{'masked ' if masked else ''}{'large ' if m > 252 else ''}"
                yield f"{size}{label}", _in(precision, _groups, x, y, masked)


def _prefixes(backend: Any, x: Tensor, y: Tensor | None, dims: tuple[int, ...]) -> None:
    m, n = len(x), len(x if y is None else y)
    pairing = Pairing(m, m // 2, leave_out_self=True) if y is None else Pairing(m)
    a = empty(len(dims), m)
    problem = x, y, empty(), Prefixes(dims, a, a if y is None else empty(len(dims), n)), pairing
    lse, positive, columns = backend.forward(*problem, y is not None)
    row, column = (lse, torch.empty_like(lse)), (columns, torch.empty_like(columns))
    if y is None:
        backend.backward(*problem, row, row, positive)
    else:
        backend.backward(*problem, row, column, positive, True)
        backend.backward(*problem, row, None, positive)
        backend.backward(*problem, None, column, positive)


def matryoshka_softmax() -> Iterator[Case]:
    """Statistics, and gradients of both sides or from one side's statistics."""
    for dtype, dims in itertools.product(DTYPES, ((128,), (16, 32, 64, 128), (7, 40, 100), SIX)):
        for size, m, n in (("", 252, 507), ("large ", 8192, 9000)):
            if not size or dims is SIX:
                label = f"{size}{LABELS[dtype]} D={dims[-1]} K={len(dims)}"
                given = empty(m, dims[-1], dtype=dtype), empty(n, dims[-1], dtype=dtype)
                yield label, _in("ieee", _prefixes, given[0], None, dims)
                yield f"of two {label}", _in("ieee", _prefixes, *given, dims)


def _contrast(backend: Any, x: Tensor, y: Tensor) -> None:
    scale, bias, pairing = empty(), empty(), Pairing(len(x), 3, 0, 0)
    backend.forward(x, y, scale, bias, pairing)
    backend.gradients(x, y, scale, bias, pairing, empty(len(x)), True)


def sigmoid_contrast() -> Iterator[Case]:
    """Losses, and gradients of both sides."""
    dims = 128, 256, 512, 768, 100, 123, 300
    for label, dtype, dim, precision in _matrices(dims, tf32=(128, 512)):
        for size, m, n in (("", 252, 507), ("large ", 8192, 9000)):
            if dim >= 512 or not size:
                given = empty(m, dim, dtype=dtype), empty(n, dim, dtype=dtype)
                yield f"{size}{label}", _in(precision, _contrast, *given)


def _classifier(
    backend: Any,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softcap: float | None = None,
) -> None:
    wants = linear_cross_entropy.Wants(True, True, bias is not None)
    backend.forward(x, w, bias, targets, softcap)
    backend.gradients(x, w, bias, targets, empty(len(x)), 0.1, wants, softcap)


def linear_cross_entropy_() -> Iterator[Case]:
    """Losses and gradients: with a bias or not, of classes or given logits, V in 16s or not."""

    def case(what: str, v: int, d: int, dtype: torch.dtype, biased: bool, precision: str) -> Case:
        x, w = empty(70, d, dtype=dtype), empty(v, d, dtype=dtype)
        bias = empty(v, dtype=dtype) if biased else None
        name = f"{what}{' with bias' if biased else ''} D={d} V={v}"
        return name, _in(precision, _classifier, x, w, bias, empty(70, dtype=torch.int64))

    for v, d in ((1, 128), (700, 128), (8192, 128), (128256, 2048), (131072, 4096)):
        yield case("bf16", v, d, BF16, False, "ieee")
    for dtype, biased in itertools.product(DTYPES, (False, True)):
        for v, d in ((30522, 768), (507, 123), (9001, 256)):
            yield case(LABELS[dtype], v, d, dtype, biased, "ieee")
    yield case("tf32", 9001, 256, F32, False, "tf32")
    for dtype in DTYPES:
        given = empty(70, 128, dtype=dtype), empty(700, 128, dtype=dtype), None
        classes = empty(70, dtype=torch.int64)
        yield f"softcap {LABELS[dtype]} D=128", _in("ieee", _classifier, *given, classes, 30.0)
        given = empty(70, 128, dtype=dtype), empty(65536, 128, dtype=dtype), None, empty(70)
        yield f"given targets {LABELS[dtype]} D=128", _in("ieee", _classifier, *given)


def _views(
    backend: Any, shape: tuple[int, int, int], k: int, dim: int, dtype: torch.dtype, biased: bool
) -> None:
    views, targets, samples = shape
    x, y = (empty(n, samples, dim, dtype=dtype) for n in (views, targets))
    student = prototype_cross_entropy.Side(x, empty(k, dim, dtype=dtype), empty())
    bias = empty(targets, k) if biased else None
    teacher = prototype_cross_entropy.Side(y, empty(k, dim, dtype=dtype), empty(), bias)
    pairs, wants = empty(views, targets), prototype_cross_entropy.Wants(True, True)
    for row_weight in (None, empty(views, samples)):
        backend.losses(student, teacher, pairs, row_weight, wants)


def prototype_cross_entropy_() -> Iterator[Case]:
    """Losses, and gradients: (S, T, G) of DINO, MSN, iBOT and others, K in 16s or not."""

    def case(what: str, shape: tuple[int, int, int], k: int, dtype: Any, biased: bool) -> Case:
        name = f"{what} {LABELS[dtype]} K={k}{' with bias' if biased else ''}"
        return name, _in("ieee", _views, shape, k, 256, dtype, biased)

    methods = {"DINO": (10, 2, 64), "MSN": (11, 1, 64), "iBOT": (1, 1, 700)}
    for dtype, (what, shape), biased in itertools.product(DTYPES, methods.items(), (True, False)):
        for k in (65536, 3001):
            yield case(what, shape, k, dtype, biased)
    for k in (1, 100, 700):
        yield case("SwAV", (8, 2, 64), k, BF16, True)
    for targets in (3, 5, 40):
        yield case(f"T={targets}", (3, targets, 9), 65536, BF16, True)


def ema() -> Iterator[Case]:
    """Teachers and students of every pair of dtypes, aligned or not."""

    def update(kinds: Sequence[tuple[torch.dtype, torch.dtype]], offset: int, backend: Any) -> None:
        pairs = [[empty(1023, dtype=t, offset=offset) for t in pair] for pair in kinds]
        teacher, student = (list(tensors) for tensors in zip(*pairs, strict=True))
        backend.update(teacher, student, empty(dtype=F64))

    every = list(itertools.product((F32, F64, BF16, F16), repeat=2))
    mixed = [(F32, F32), (F32, BF16), (F32, F16)]
    kinds = {f"{LABELS[s]} to {LABELS[t]}": [(t, s)] for t, s in every}
    kinds |= {"mixed": mixed, "every kind": every}
    for (name, pairs), offset in itertools.product(kinds.items(), (0, 1)):
        yield f"{name}{' unaligned' if offset else ''}", partial(update, pairs, offset)


def _optimizers() -> Iterator[tuple[str, list[tuple[torch.dtype, torch.dtype | None]], int]]:
    """Dtypes of parameters and their teachers, and an offset of addresses."""
    kinds: dict[str, list[tuple[torch.dtype, torch.dtype | None]]] = {
        "fp32": [(F32, None)],
        "fp32 with teacher": [(F32, F32)],
        "bf16 with fp32 teacher": [(BF16, F32)],
        "mixed with teacher": [(F32, F32), (BF16, F32)],
        "fp16 with fp32 teacher": [(F16, F32)],
    }
    for (name, types), offset in itertools.product(kinds.items(), (0, 1)):
        yield f"{name}{' unaligned' if offset else ''}", types, offset


def adamw_() -> Iterator[Case]:
    """Steps with a teacher or without."""

    def step(
        types: Sequence[tuple[torch.dtype, torch.dtype | None]], at: int, backend: Any
    ) -> None:
        own = [[empty(1023, dtype=p, offset=at) for p, _ in types] for _ in range(4)]
        teachers = [t and empty(1023, dtype=t, offset=at) for _, t in types]
        steps = [empty() for _ in types]
        tensors = adamw.Tensors(*own, steps, teachers, [0] * len(types))
        backend.step(tensors, empty(1, len(adamw.FIELDS), dtype=F64), empty(2, dtype=F64))

    for name, types, offset in _optimizers():
        yield name, partial(step, types, offset)


def lars_() -> Iterator[Case]:
    """Steps with a teacher or without."""

    def step(
        types: Sequence[tuple[torch.dtype, torch.dtype | None]], at: int, backend: Any
    ) -> None:
        own = [[empty(1023, dtype=p, offset=at) for p, _ in types] for _ in range(3)]
        teachers = [t and empty(1023, dtype=t, offset=at) for _, t in types]
        tensors = lars.Tensors(*own, teachers, [0] * len(types))
        groups, control = empty(1, len(lars.FIELDS), dtype=F64), empty(2, dtype=F64)
        backend.step(tensors, groups, control, empty(len(types), dtype=F64))

    for name, types, offset in _optimizers():
        yield name, partial(step, types, offset)


def philox() -> Iterator[Case]:
    """Words of samples."""
    ids, step = empty(33, dtype=torch.int64), empty(dtype=torch.int64)
    yield "words", lambda backend: backend.random_bits(ids, step, -7, 3, 197)


def patch_mask() -> Iterator[Case]:
    """All three selections, of the lengths that images, videos and long sequences have."""

    def select(length: int, keep: int, backend: Any) -> None:
        ids, step = empty(33, dtype=torch.int64), empty(dtype=torch.int64)
        backend.random(ids, step, -7, 3, length, keep)
        backend.smallest(empty(33, length, dtype=torch.int64), ids)
        backend.compact(empty(33, length, dtype=torch.bool), keep)

    for length, keep in ((1, 0), (50, 20), (196, 49), (400, 100), (1568, 160), (4096, 1000)):
        yield f"L={length}", partial(select, length, keep)


def _features() -> Iterator[tuple[str, torch.dtype, int]]:
    for dtype, dim in itertools.product(DTYPES, (129, 512, 768)):
        yield f"{LABELS[dtype]} D={dim}", dtype, dim
    yield "fp32 D=64", F32, 64


def gather_patches() -> Iterator[Case]:
    """Rows by index, and the way back."""

    def both(dtype: torch.dtype, dim: int, backend: Any) -> None:
        ids = empty(16, 49, dtype=torch.int64)
        backend.gather(empty(16, 196, dim, dtype=dtype), ids)
        backend.scatter(empty(16, 49, dim, dtype=dtype), ids, 196)

    for label, dtype, dim in _features():
        yield label, partial(both, dtype, dim)


def restore_with_tokens() -> Iterator[Case]:
    """The decoder's input and its gradients."""

    def both(dtype: torch.dtype, dim: int, backend: Any) -> None:
        visible, restore = empty(16, 49, dim, dtype=dtype), empty(16, 196, dtype=torch.int64)
        token = empty(dim, dtype=dtype)
        for positions in (None, empty(196, dim, dtype=dtype)):
            backend.forward(visible, token, restore, positions)
        backend.backward(empty(16, 196, dim, dtype=dtype), restore, 49)

    for label, dtype, dim in _features():
        yield label, partial(both, dtype, dim)


def masked_mse() -> Iterator[Case]:
    """Losses and gradients, targets normalised or not, with a gradient or not."""

    def both(dtype: torch.dtype, dim: int, backend: Any) -> None:
        prediction, target = (empty(392, dim, dtype=dtype) for _ in range(2))
        mask = empty(392, dtype=torch.bool)
        for normalize, wanted in itertools.product((False, True), repeat=2):
            loss = backend.forward(prediction, target, mask, normalize, 1e-6)
            backend.backward(loss, prediction, target, mask, normalize, 1e-6, wanted)

    for label, dtype, dim in _features():
        yield label, partial(both, dtype, dim)


def patchify_visible() -> Iterator[Case]:
    """Visible patches of pictures and clips, embedded or cut, aligned or not."""

    def both(
        dtype: torch.dtype, dim: int, patch: tuple[int, int, int], offset: int, backend: Any
    ) -> None:
        frames = 16 if patch[0] > 1 else 1
        images = empty(4, 3, frames, 224, 224, dtype=dtype, offset=offset)
        weight = empty(dim, 3, *patch, dtype=dtype)
        ids = empty(4, 49, dtype=torch.int64)
        length = frames // patch[0] * (224 // patch[1]) * (224 // patch[2])
        for bias, positions in ((True, True), (False, True), (True, False), (False, False)):
            backend.forward(
                images, weight, empty(dim, dtype=dtype) if bias else None,
                empty(length, dim, dtype=dtype) if positions else None, ids,
            )  # fmt: skip
        backend.cut(images, patch, ids)

    shapes = [(129, (1, 16, 16)), (768, (1, 16, 16)), (768, (2, 16, 16))]
    for dtype, (dim, patch), offset in itertools.product(DTYPES, shapes, (0, 1)):
        if offset and dim != 768:
            continue
        label = f"{LABELS[dtype]} D={dim}{' clips' if patch[0] > 1 else ''}"
        call = partial(both, dtype, dim, patch, offset)
        yield f"{label}{' unaligned' if offset else ''}", call
        if dtype == F32 and not offset:
            yield f"tf32 D={dim}{' clips' if patch[0] > 1 else ''}", _in("tf32", call)


def unit_rows() -> Iterator[Case]:
    """Norms; gradients as NT-Xent and both sides of CLIP ask for them, of one part or many."""

    def both(dtype: torch.dtype, dim: int, backend: Any) -> None:
        z, norms = backend.normalize(empty(252, dim, dtype=dtype))
        weight, scale = empty(252), empty()

        def gradient(parts: int, norms: Tensor | None, sides: Any, share: float | None) -> None:
            pairs = Positives(Pairing(252), z, *sides)
            backend.gradient(empty(parts, 252, dim), z, norms, scale, pairs, share)

        for parts in (1, 2, 3, 9) if dim == 128 else (1, 9):
            gradient(parts, norms, (weight, weight), None)
        gradient(1, norms, (weight, weight), 0.5)
        gradient(1, None, (weight, None), 1.0)
        gradient(1, None, (None, weight), None)

    for dtype, dim in itertools.product(DTYPES, (123, 128, 256, 512)):
        yield f"{LABELS[dtype]} D={dim}", partial(both, dtype, dim)


def cross_correlation_() -> Iterator[Case]:
    """Two views standardized and one centered, by Gram matrices and by the matrix."""

    def both(dtype: torch.dtype, dim: int, backend: Any) -> None:
        for n, two in itertools.product((64, 252), (True, False)):
            x = empty(n, dim, dtype=dtype)
            y = empty(n, dim, dtype=dtype) if two else None
            form = cross_correlation.Form(n, standardize=two, eps=1e-5)
            scaling = form.scaling(*(backend.moments(view) for view in (x, y) if view is not None))
            kept = cross_correlation.new_kept(x, y, torch.float32)
            results = backend.forward(x, y, scaling, form, kept)
            backend.backward(*results, x, y, scaling, form, results[0], kept)

    for dtype, dim in itertools.product(DTYPES, (123, 128)):
        yield f"{LABELS[dtype]} D={dim}", partial(both, dtype, dim)


def sigreg_() -> Iterator[Case]:
    """Sums and gradients of projections."""

    def both(count: int, backend: Any) -> None:
        p, form = empty(2, 300, count), sigreg.Form(3.0, 17)
        backend.gradient_(p, backend.sums(p, form).float(), form)

    for count in (123, 128):
        yield f"M={count}", partial(both, count)


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "adamw": adamw_,
    "cross_correlation": cross_correlation_,
    "ema": ema,
    "gather_patches": gather_patches,
    "grouped_softmax": grouped_softmax,
    "lars": lars_,
    "linear_cross_entropy": linear_cross_entropy_,
    "masked_mse": masked_mse,
    "matryoshka_softmax": matryoshka_softmax,
    "patch_mask": patch_mask,
    "patchify_visible": patchify_visible,
    "philox": philox,
    "prototype_cross_entropy": prototype_cross_entropy_,
    "restore_with_tokens": restore_with_tokens,
    "sigmoid_contrast": sigmoid_contrast,
    "sigreg": sigreg_,
    "similarity_softmax": similarity_softmax,
    "unit_rows": unit_rows,
}


def backends(op: str) -> list[registry.Backend]:
    """Those of an op that launch Triton kernels."""
    return [b for b in registry.candidates(op) if b.name.startswith("triton") and b.module]


def record(architecture: int, **gpu: Any) -> list[Launch]:
    """Every launch of every case, each compilation once; see ``launches.recording``."""
    found = []
    with recording(architecture, **gpu) as since:
        for op, cases in CASES.items():
            for backend, (name, call) in itertools.product(backends(op), list(cases())):
                call(backend.module)
                found += since(f"{op} {name}")
    return distinct(found)
