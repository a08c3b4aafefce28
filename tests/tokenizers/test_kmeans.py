import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sslfast.tokenizers.kmeans import kmeans, nearest, totals_of


def planted(
    generator: torch.Generator, groups: int = 12, each: int = 50
) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors [groups * each, 6] around far centres, in random order, with their groups."""
    centers = 20 * torch.randn(groups, 6, generator=generator)
    while torch.pdist(centers).min() < 8:
        centers = 20 * torch.randn(groups, 6, generator=generator)
    labels = torch.arange(groups).repeat(each)[torch.randperm(groups * each, generator=generator)]
    noise = 0.2 * torch.randn(len(labels), 6, generator=generator)
    return centers[labels] + noise, labels, centers


def test_planted_clusters_are_found(generator: torch.Generator) -> None:
    vectors, labels, centers = planted(generator)
    found, codes = kmeans(vectors, 12, seed=3)
    for code in range(12):
        of = labels[codes == code]
        assert len(of) == 50
        assert (of == of[0]).all()
        expected = vectors[labels == of[0]].double().mean(0)
        torch.testing.assert_close(found[code].double(), expected, rtol=1e-5, atol=1e-4)
        assert (found[code] - centers[of[0]]).norm() < 0.3


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 70), codes=st.integers(1, 40), seed=st.integers(0, 2**30), width=st.just(5)
)
def test_the_nearest_centre_is_the_nearest(count: int, codes: int, seed: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, width, generator=generator)
    centers = torch.randn(codes, width, generator=generator)
    distances = torch.cdist(vectors.double(), centers.double())
    chosen = distances.gather(1, nearest(vectors, centers)[:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.min(1).values, rtol=1e-5, atol=1e-6)


def test_blocks_do_not_show(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _, centers = planted(generator)
    whole = nearest(vectors, centers)
    sums, sizes = totals_of(vectors, whole, 12)
    monkeypatch.setattr("sslfast.tokenizers.kmeans.ENTRIES", 12 * 7)
    assert torch.equal(nearest(vectors, centers), whole)
    parts, counts = totals_of(vectors, whole, 12)
    torch.testing.assert_close(parts, sums)
    assert torch.equal(sizes, counts)
    assert counts.tolist() == whole.bincount(minlength=12).tolist()
    expected = torch.stack([vectors[whole == code].double().sum(0) for code in range(12)])
    torch.testing.assert_close(parts.double(), expected, rtol=1e-4, atol=1e-3)


def test_autocast_moves_nothing(generator: torch.Generator) -> None:
    vectors = torch.randn(500, 6, generator=generator)
    centers = torch.randn(200, 6, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        codes = nearest(vectors, centers)
    distances = torch.cdist(vectors.double(), centers.double())
    chosen = distances.gather(1, codes[:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.min(1).values, rtol=1e-5, atol=1e-6)


def test_results_depend_on_the_seed_alone(generator: torch.Generator) -> None:
    vectors = torch.randn(600, 6, generator=generator)
    (first, codes), (second, again) = (kmeans(vectors, 40, seed=5) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(codes, again)
    assert torch.equal(codes, nearest(vectors, first))
    other, _ = kmeans(vectors, 40, seed=6)
    assert not torch.equal(first, other)


def test_more_rounds_fit_better(generator: torch.Generator) -> None:
    vectors = torch.randn(2000, 4, generator=generator)

    def error(iterations: int) -> float:
        centers, codes = kmeans(vectors, 50, iterations=iterations)
        return float((vectors - centers[codes]).square().sum(1).mean())

    assert error(20) < 0.93 * error(0)


def test_every_code_is_used_where_most_patches_are_the_same(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat images: one value in 990 of 1,000 rows, and no more different ones than needed."""
    monkeypatch.setattr("sslfast.tokenizers.kmeans.SEEDS", 44)  # which see few of the ten
    vectors = torch.zeros(1000, 3)
    rows = torch.randperm(1000, generator=generator)[:10]
    vectors[rows] = torch.randn(10, 3, generator=generator)
    centers, codes = kmeans(vectors, 11)
    assert codes.unique().tolist() == list(range(11))
    torch.testing.assert_close(centers[codes], vectors)


def test_too_few_vectors_are_explained() -> None:
    with pytest.raises(ValueError, match="at least 2 codes, got 1"):
        kmeans(torch.randn(10, 3), 1)
    with pytest.raises(ValueError, match="10 patches are fewer than 11 codes: give more images"):
        kmeans(torch.randn(10, 3), 11)
    with pytest.raises(ValueError, match="only 4 groups of different patches for 5 codes: ask for"):
        kmeans(torch.arange(4.0)[:, None].repeat(30, 3), 5)
