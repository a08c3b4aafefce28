"""DALI's pipelines on a GPU, with mixed decoding, against the same on the CPU."""

import itertools
from pathlib import Path

import pytest
import torch

pytest.importorskip("nvidia.dali", reason="needs DALI")
pytest.importorskip("skimage", reason="needs the photographs of scikit-image")

from benchmarks import dali
from benchmarks.data import photographs
from sslfast.data import ImageDataset, recipe

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return photographs(tmp_path_factory.mktemp("photographs"), 40)


@pytest.mark.parametrize("name", dali.RECIPES)
def test_views_are_those_of_the_cpu(dataset: ImageDataset, name: str) -> None:
    found = dali.differences(dataset, recipe(name), 8, CUDA, seed=3, count=3)
    assert found["mean levels"] * dali.LEVEL <= dali.TOLERANCE
    assert found["share above 16 levels"] < 0.05


def test_batches_handed_out_stay_as_they_are(dataset: ImageDataset) -> None:
    loader = dali.batches(dataset, recipe("simclr_small"), 8, CUDA, seed=3)
    batch = next(loader)
    copies = [view.clone() for view in batch.views]
    for _ in itertools.islice(loader, 12):
        torch.cuda.synchronize()
    assert all(torch.equal(view, copy) for view, copy in zip(batch.views, copies, strict=True))


def test_the_same_bits_again(dataset: ImageDataset) -> None:
    first, second = (dali.batches(dataset, recipe("simclr"), 8, CUDA, seed=5) for _ in range(2))
    for a, b in itertools.islice(zip(first, second, strict=True), 3):
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


def test_pixels_do_not_depend_on_the_rest_of_the_batch(dataset: ImageDataset) -> None:
    """Forty photographs in batches of 8 and of 20: one decoder for all."""
    found = []
    for size in (8, 20):
        epoch = list(
            itertools.islice(dali.batches(dataset, recipe("mae"), size, CUDA, 5), 40 // size)
        )
        order = torch.cat([batch.sample_ids for batch in epoch]).argsort()
        found.append(torch.cat([batch.views[0] for batch in epoch])[order])
    assert torch.equal(*found)


def test_an_unreadable_file_is_skipped(dataset: ImageDataset, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    whole = Path(dataset.paths[0]).read_bytes()
    broken.write_bytes(whole[:200])
    assert dataset.sizes is not None
    more = ImageDataset(
        "one broken", [*dataset.paths, str(broken)], sizes=[*dataset.sizes, (64, 64)]
    )
    loader = dali.batches(more, recipe("simclr_small"), 8, CUDA, seed=3)
    ids = torch.cat([batch.sample_ids for batch in itertools.islice(loader, 10)])
    assert len(dataset.paths) not in ids.tolist()
