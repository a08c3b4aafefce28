"""k-means: a codebook of vectors, the same bits on every run."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._arguments import NonNegativeInt, PositiveInt, Seed, checked

ENTRIES = 1 << 22  # of the table that compares a block of vectors with all centres
SEEDS_PER_CENTER, SEEDS = 4, 4096  # k-means++ draws the first centres out of so many vectors
REPAIRS = 50  # further rounds for centres that no vector is nearest to


def nearest(vectors: Tensor, centers: Tensor) -> Tensor:
    """The nearest centre of each vector: argmax of x . c - |c|^2 / 2, one product a block.

    Args:
        vectors: [N, F].
        centers: [V, F] of the same dtype.

    Returns:
        int64 [N] in [0, V); of equally near centres the first.
    """
    norms = centers.square().sum(1)
    # Not in autocast's 16 bits: they would move vectors to other centres.
    with torch.autocast(vectors.device.type, enabled=False):
        found = [
            torch.addmm(norms, block, centers.T, beta=-0.5).argmax(1)
            for block in _blocks(vectors, len(centers))
        ]
    return torch.cat(found)


@checked
def kmeans(
    vectors: Tensor, count: PositiveInt, *, iterations: NonNegativeInt = 20, seed: Seed = 0
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from greedy k-means++ (Arthur and Vassilvitskii 2007).

    A centre that no vector is nearest to moves to the vector that is farthest from its own, so that
    all are in use at the end. Sums are products with a one-hot matrix: no atomics on a GPU.

    Args:
        vectors: float32 [N, F].
        count: V, centres.
        iterations: rounds of assignment and update, at most.
        seed: of the first centres.

    Returns:
        centres [V, F], and the nearest of each vector, int64 [N].

    Raises:
        ValueError: a count below 2, fewer vectors than centres, or fewer different ones.
    """
    if count < 2:
        raise ValueError(f"a codebook needs at least 2 codes, got {count}")
    if len(vectors) < count:
        raise ValueError(
            f"{len(vectors)} patches are fewer than {count} codes: give more images, or ask for "
            "fewer codes"
        )
    centers = _first_centers(vectors, count, seed)
    codes = nearest(vectors, centers)
    for step in range(iterations + REPAIRS):
        totals, sizes = totals_of(vectors, codes, count)
        empty = (sizes == 0).nonzero()[:, 0]
        if step >= iterations and not len(empty):
            return centers, codes
        centers = totals / sizes.clamp_min(1)[:, None]
        if len(empty):
            distances = (vectors - centers[codes]).square().sum(1)
            centers[empty] = vectors[distances.topk(len(empty)).indices]
        before, codes = codes, nearest(vectors, centers)
        if not len(empty) and torch.equal(before, codes):
            return centers, codes
    used = len(codes.unique())
    raise ValueError(
        f"k-means finds only {used} groups of different patches for {count} codes: ask for "
        f"{used} or fewer, or give more images"
    )


def totals_of(vectors: Tensor, codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sums [V, F] and numbers [V] of the vectors [N, F] of each code, int64 [N]."""
    totals = vectors.new_zeros(count, vectors.shape[1])
    sizes = vectors.new_zeros(count)
    for block, chosen in zip(_blocks(vectors, count), _blocks(codes, count), strict=True):
        members = F.one_hot(chosen, count).to(vectors.dtype)
        totals += members.T @ block
        sizes += members.sum(0)
    return totals, sizes


def _blocks(x: Tensor, count: int) -> tuple[Tensor, ...]:
    return x.split(max(ENTRIES // count, 1))


def _first_centers(vectors: Tensor, count: int, seed: int) -> Tensor:
    """Greedy k-means++: candidates drawn in proportion to their squared distance from the centres.

    Of a few for each centre the one that brings all vectors nearest is taken. Duplicates, where
    there is nothing else left to draw, are for Lloyd's rounds to mend.
    """
    generator = torch.Generator().manual_seed(seed)
    most = max(SEEDS_PER_CENTER * count, SEEDS)
    some = vectors[torch.randperm(len(vectors), generator=generator)[:most].to(vectors.device)]
    candidates = 2 + int(math.log(count))
    draws = torch.rand(count, candidates, generator=generator, dtype=torch.float64)
    norms = some.square().sum(1)
    distances = (norms - 2 * some @ some[0] + norms[0]).clamp_min(0)
    chosen = [torch.zeros((), dtype=torch.int64, device=some.device)]
    for draw in draws[1:].to(some.device):
        steps = distances.double().cumsum(0)
        places = torch.searchsorted(steps, draw * steps[-1], right=True).clamp_max(len(some) - 1)
        away = norms - 2 * some[places] @ some.T + norms[places, None]
        nearer = torch.minimum(distances, away.clamp_min(0))
        best = nearer.sum(1).argmin()
        chosen.append(places[best])
        distances = nearer[best]
    return some[torch.stack(chosen)]
