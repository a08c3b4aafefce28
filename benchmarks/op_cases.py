"""Every op at a size or two, as people call it: what pytest-benchmark times (test_ops.py).

Ops that have a program of their own take its inputs, at the sizes that it has with --quick. A new
op needs a function in ``CASES``, a new backend of a known op nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import ema as ema_benchmark
from benchmarks import losses as loss_benchmark
from benchmarks import masking as masking_benchmark
from benchmarks import optim as optim_benchmark
from benchmarks import redundancy as redundancy_benchmark
from benchmarks import sigreg as sigreg_benchmark
from benchmarks import similarity_softmax as ntxent_benchmark
from benchmarks.harness.passes import Inputs, forward, gradients
from benchmarks.harness.record import OURS
from benchmarks.harness.timing import Run
from benchmarks.masking import DIM, KEEP, LENGTH
from sslfast import functional
from sslfast.kernels import class_sums as class_sums_kernels
from sslfast.kernels import nearest_rows as nearest_kernels
from sslfast.kernels import philox as philox_kernels
from sslfast.kernels import registry
from sslfast.kernels import unit_rows as unit_rows_kernels
from sslfast.kernels.prototype_cross_entropy.op import weighted_prototype_loss
from sslfast.masking import random_mask
from sslfast.models import resnet50
from sslfast.optim import LARS, AdamW

FORWARD, BOTH = "forward", "forward and backward"


@dataclass(frozen=True)
class Case:
    """An op at one size.

    Attributes:
        size: what tells it from the op's other cases.
        passes: makers of runs, by name; inputs are made when one is called.
    """

    size: str
    passes: dict[str, Callable[[], Run]]


def one_way(size: str, function: Callable[..., object], inputs: Callable[[], Inputs]) -> Case:
    """Of an op that has no backward pass."""
    return Case(size, {FORWARD: lambda: forward(function, inputs())})


def both_ways(size: str, function: Callable[..., Tensor], inputs: Callable[[], Inputs]) -> Case:
    """Of an op that is differentiated: its forward pass in training, and both."""
    backward = {BOTH: lambda: gradients(function, inputs())}
    return Case(size, {FORWARD: lambda: forward(function, inputs()), **backward})


def similarity_softmax(device: torch.device) -> Iterator[Case]:
    """NT-Xent."""
    for size in ntxent_benchmark.sizes(device, quick=True):
        loss = partial(functional.ntxent, temperature=size.tau)
        yield both_ways(str(size), loss, partial(ntxent_benchmark.pairs, size, device))


def sigmoid_contrast(device: torch.device) -> Iterator[Case]:
    """SigLIP."""
    yield of_a_loss(loss_benchmark.cases(device, quick=True)["siglip"]())


def grouped_softmax(device: torch.device) -> Iterator[Case]:
    """CLIP with four texts an image, pairs of one subject left out, and hard negatives."""
    n, dim = (1024 if device.type == "cpu" else 8192), 512
    groups, ignored = (torch.arange(n, device=device) // k for k in (4, 16))

    def loss(image: Tensor, text: Tensor, negatives: Tensor) -> Tensor:
        options = {"group_ids": groups, "ignore_ids": ignored, "positives": "inside"}
        return functional.clip(
            image, text, 20.0, negatives=negatives, false_negative_threshold=0.9, **options
        )

    def inputs() -> Inputs:
        at: dict[str, Any] = {"device": device, "requires_grad": True}
        return [tuple(torch.randn(k, dim, **at) for k in (n, n, n // 4)) for _ in range(2)]

    yield both_ways(f"N={n} D={dim}", loss, inputs)


def matryoshka_softmax(device: torch.device) -> Iterator[Case]:
    """NT-Xent of six prefixes."""
    yield of_a_loss(loss_benchmark.cases(device, quick=True)["matryoshka"]())


def linear_cross_entropy(device: torch.device) -> Iterator[Case]:
    """Cross-entropy over a vocabulary, on a CPU a small one."""
    if device.type == "cpu":
        yield of_a_loss(loss_benchmark.linear_case(1024, 256, 8192, device, torch.float32))
    else:
        yield of_a_loss(loss_benchmark.cases(device, quick=True)["linear"]())


def prototype_cross_entropy(device: torch.device) -> Iterator[Case]:
    """SwAV's two codes and eight crops; a view is not compared with itself."""
    cpu = device.type == "cpu"
    views, targets, samples, dim, k = (8, 2, 32, 128, 4096) if cpu else (8, 2, 256, 256, 65536)
    at: dict[str, Any] = {"device": device, "dtype": torch.float32 if cpu else torch.bfloat16}
    pairs = 1 - torch.eye(views, targets, device=device)
    scale, bias = torch.tensor(10.0, device=device), torch.zeros(targets, k, device=device)
    row_weight = torch.full((views, samples), 1 / (views * samples), device=device)

    def loss(student: Tensor, weight: Tensor, teacher: Tensor) -> Tensor:
        sides = student, weight, teacher, weight.detach(), scale, 2 * scale, bias
        return weighted_prototype_loss(*sides, pairs, row_weight, True, True)[0]

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, dim, **at), dim=-1)

    def inputs() -> Inputs:
        def one() -> tuple[Tensor, ...]:
            student, weight = unit(views, samples), unit(k)
            return student.requires_grad_(), weight.requires_grad_(), unit(targets, samples)

        return [one() for _ in range(2)]

    yield both_ways(f"S={views} T={targets} G={samples} D={dim} K={k}", loss, inputs)


def sinkhorn(device: torch.device) -> Iterator[Case]:
    """SwAV's codes: what is added to scores."""
    n, dim, k = 512, 128, 3000

    def inputs() -> Inputs:
        return [tuple(torch.randn(m, dim, device=device) for m in (n, k)) for _ in range(2)]

    yield one_way(f"N={n} D={dim} K={k}", partial(functional.sinkhorn, temperature=10.0), inputs)


def nearest_rows(device: torch.device) -> Iterator[Case]:
    """KoLeo's neighbours."""
    n, dim = (2048 if device.type == "cpu" else 16384), 384
    own = torch.arange(n, device=device)

    def nearest(x: Tensor) -> object:
        return registry.pick("nearest_rows", nearest_kernels.problem(x)).nearest(x, x, own)

    def inputs() -> Inputs:
        return [(torch.randn(n, dim, device=device),) for _ in range(2)]

    yield one_way(f"N={n} D={dim}", nearest, inputs)


def of_a_loss(case: loss_benchmark.Case) -> Case:
    """A problem of benchmarks/losses.py."""

    def inputs() -> Inputs:
        return [case.inputs() for _ in range(loss_benchmark.SETS)]

    return both_ways(case.name, case.providers[OURS], inputs)


def cross_correlation(device: torch.device) -> Iterator[Case]:
    """Barlow Twins and VICReg."""
    like = torch.empty(0, device=device)
    for n, d in redundancy_benchmark.sizes(device, quick=True):
        for make in redundancy_benchmark.CASES.values():
            yield of_a_loss(make(n, d, like))


def sigreg(device: torch.device) -> Iterator[Case]:
    """SIGReg along a few directions."""
    for size in sigreg_benchmark.sizes(device, quick=True):
        yield of_a_loss(sigreg_benchmark.case(*size, torch.empty(0, device=device)))


def class_sums(device: torch.device) -> Iterator[Case]:
    """As in the supervised contrastive loss; its gradient is the same sums."""
    m, dim, classes = 4096, 128, 100

    def inputs() -> Inputs:
        labels = torch.randint(classes, (m,), device=device)
        return [(torch.randn(m, dim, device=device), labels) for _ in range(3)]

    def sums(x: Tensor, labels: Tensor) -> Tensor:
        return registry.pick("class_sums", class_sums_kernels.problem(x)).sums(x, labels)

    yield one_way(f"M={m} D={dim}, {classes} classes", sums, inputs)


def unit_rows(device: torch.device) -> Iterator[Case]:
    """Normalisation alone: it is differentiated within losses."""
    m, dim = 8192, 512

    def inputs() -> Inputs:
        return [(torch.randn(m, dim, device=device).bfloat16(),) for _ in range(3)]

    def normalize(x: Tensor) -> object:
        return registry.pick("unit_rows", unit_rows_kernels.problem(x)).normalize(x)

    yield one_way(f"M={m} D={dim} bfloat16", normalize, inputs)


def ema(device: torch.device) -> Iterator[Case]:
    """Teachers of a vision transformer and of many small tensors."""

    def update(teacher: list[Tensor], student: list[Tensor]) -> None:
        functional.ema_update_(teacher, student, ema_benchmark.MOMENTUM)

    for size in ema_benchmark.sizes(device, quick=True):
        made = partial(ema_benchmark.teachers_and_students, size, device)
        yield one_way(str(size), update, made)


def optimizer_step(
    make: optim_benchmark.Make, shapes: list[tuple[int, ...]], device: torch.device, **options: Any
) -> Case:
    """A step with an EMA teacher."""

    def run() -> Run:
        net = optim_benchmark.network(shapes, [torch.randn(s, device=device) for s in shapes])
        return optim_benchmark.step_of_ours(make, net, teacher=True, **options)

    count = sum(torch.Size(shape).numel() for shape in shapes)
    return Case(f"{len(shapes)} tensors, {count / 1e6:.1f} M, with a teacher", {FORWARD: run})


def adamw(device: torch.device) -> Iterator[Case]:
    """A vision transformer's parameters."""
    yield optimizer_step(AdamW, ema_benchmark.vit_shapes(192), device)


def lars(device: torch.device) -> Iterator[Case]:
    """A ResNet-50's."""
    with torch.device("meta"):  # only its shapes
        shapes = [tuple(p.shape) for p in resnet50().parameters()]
    yield optimizer_step(LARS, shapes, device, lr=0.1, momentum=0.9, weight_decay=1e-6)


def batch_of(device: torch.device) -> int:
    """Images of a step."""
    return 64 if device.type == "cpu" else 256


def philox(device: torch.device) -> Iterator[Case]:
    """A word for every patch."""
    batch = 8 * batch_of(device)
    problem = philox_kernels.Problem(device.type, batch, LENGTH)

    def inputs() -> Inputs:
        ids = torch.arange(batch, device=device)
        return [(ids, torch.tensor(step, device=device)) for step in range(3)]

    def words(ids: Tensor, step: Tensor) -> object:
        return registry.pick("philox", problem).random_bits(ids, step, 0, 0, LENGTH)

    yield one_way(f"B={batch} L={LENGTH}", words, inputs)


def patch_mask(device: torch.device) -> Iterator[Case]:
    """MAE's random masks."""
    batch = 8 * batch_of(device)
    ids = torch.arange(batch, device=device)

    def mask(step: int) -> object:
        return random_mask(batch, LENGTH, 0.75, seed=0, step=step, sample_ids=ids)

    yield one_way(f"B={batch} L={LENGTH}", mask, lambda: [(step,) for step in range(100)])


def gather_patches(device: torch.device) -> Iterator[Case]:
    """Tokens of the visible patches."""
    batch = batch_of(device)

    def inputs() -> Inputs:
        ids = random_mask(batch, LENGTH, 0.75, seed=0, device=device).ids_keep
        shape = batch, LENGTH, DIM
        return [(torch.randn(shape, device=device, requires_grad=True), ids) for _ in range(2)]

    yield both_ways(f"B={batch} L={LENGTH} D={DIM}", functional.gather_patches, inputs)


def restore_with_tokens(device: torch.device) -> Iterator[Case]:
    """The input of MAE's decoder."""
    batch, dim = batch_of(device), 512

    def inputs() -> Inputs:
        at: dict[str, Any] = {"device": device, "requires_grad": True}
        restore = random_mask(batch, LENGTH, 0.75, seed=0, device=device).ids_restore
        token = torch.randn(dim, **at)
        return [(torch.randn(batch, KEEP, dim, **at), token, restore) for _ in range(2)]

    yield both_ways(f"B={batch} L={LENGTH} D={dim}", functional.restore_with_tokens, inputs)


def patchify_visible(device: torch.device) -> Iterator[Case]:
    """The patch embedding of MAE's encoder."""
    yield of_masking(partial(masking_benchmark.embedding, device, batch_of(device), True), device)


def masked_mse(device: torch.device) -> Iterator[Case]:
    """MAE's loss."""
    yield of_masking(partial(masking_benchmark.loss, device, batch_of(device)), device)


def of_masking(make: Callable[[], masking_benchmark.Work], device: torch.device) -> Case:
    """A problem of benchmarks/masking.py."""

    def run(one: Callable[[Callable[..., Any], Inputs], Run]) -> Run:
        work = make()
        return one(work.ours, work.inputs)

    passes = {FORWARD: lambda: run(forward), BOTH: lambda: run(gradients)}
    return Case(f"B={batch_of(device)} L={LENGTH}", passes)


CASES: dict[str, Callable[[torch.device], Iterator[Case]]] = {
    "adamw": adamw,
    "class_sums": class_sums,
    "cross_correlation": cross_correlation,
    "ema": ema,
    "gather_patches": gather_patches,
    "grouped_softmax": grouped_softmax,
    "lars": lars,
    "linear_cross_entropy": linear_cross_entropy,
    "masked_mse": masked_mse,
    "matryoshka_softmax": matryoshka_softmax,
    "nearest_rows": nearest_rows,
    "patch_mask": patch_mask,
    "patchify_visible": patchify_visible,
    "philox": philox,
    "prototype_cross_entropy": prototype_cross_entropy,
    "restore_with_tokens": restore_with_tokens,
    "sigmoid_contrast": sigmoid_contrast,
    "sigreg": sigreg,
    "similarity_softmax": similarity_softmax,
    "sinkhorn": sinkhorn,
    "unit_rows": unit_rows,
}
