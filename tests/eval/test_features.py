"""Feature extraction, and the checks that every protocol makes of its features."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from sslfast.data.batch import Batch
from sslfast.eval import Features, embed_2d, extract, knn_accuracy, linear_probe, raw_pixels


def batches(images, labels=None, size=4, as_tuple=True):
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        view = images[part]
        ids = torch.arange(start, start + len(view))
        yield Batch((view,) if as_tuple else view, ids, None if labels is None else labels[part])


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
    )


@pytest.mark.parametrize("as_tuple", [True, False])
def test_extract_runs_the_encoder_in_evaluation_mode(encoder, as_tuple):
    images, labels = torch.randn(10, 3, 6, 6), torch.arange(10) % 3
    result = extract(encoder, batches(images, labels, as_tuple=as_tuple))
    assert encoder.training
    encoder.eval()
    with torch.no_grad():
        expected = torch.cat([encoder(part) for part in images.split(4)])
    assert torch.equal(result.features, expected)
    assert torch.equal(result.labels, labels)
    assert torch.equal(result.sample_ids, torch.arange(10))
    assert result.features.dtype == torch.float32


def test_extract_repeats_bit_for_bit_and_leaves_statistics_alone(encoder):
    images = torch.randn(10, 3, 6, 6)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    first, second = (extract(encoder, batches(images)) for _ in range(2))
    assert torch.equal(first.features, second.features)
    assert first.labels is None
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


def test_extract_restores_the_mode_of_every_module(encoder):
    encoder.train()
    encoder[1].eval()  # a frozen norm must stay frozen
    modes = [module.training for module in encoder.modules()]
    extract(encoder, batches(torch.randn(4, 3, 6, 6)))
    assert [module.training for module in encoder.modules()] == modes
    with pytest.raises(RuntimeError):
        extract(encoder, batches(torch.randn(4, 2, 6, 6)))
    assert [module.training for module in encoder.modules()] == modes


def test_extracted_features_can_take_part_in_autograd(encoder):
    features = extract(encoder, batches(torch.randn(4, 3, 6, 6))).features
    weight = torch.ones(features.shape[1], requires_grad=True)
    (features @ weight).sum().backward()
    assert torch.equal(weight.grad, features.sum(0))


def test_low_precision_features_become_float32():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, dtype=torch.bfloat16))
    images = torch.randn(3, 3, 2, 2, dtype=torch.bfloat16)
    assert extract(encoder, batches(images)).features.dtype == torch.float32


def test_raw_pixels_are_the_flattened_views():
    images, labels = torch.randn(7, 3, 4, 5), torch.arange(7)
    result = raw_pixels(batches(images, labels))
    assert torch.equal(result.features, images.reshape(7, 60))
    assert torch.equal(result.labels, labels)


def test_extract_refuses_what_it_cannot_use(encoder):
    images = torch.randn(4, 3, 6, 6)
    ids = torch.arange(4)
    with pytest.raises(ValueError, match="no batch"):
        extract(encoder, [])
    with pytest.raises(ValueError, match="exactly one view, got 2 views"):
        extract(encoder, [Batch((images, images), ids)])
    with pytest.raises(ValueError, match="exactly one view, got no tensor"):
        extract(encoder, [Batch("text", ids)])
    with pytest.raises(ValueError, match=r"one feature vector per sample.*\[4, 5, 4, 4\]"):
        extract(encoder[:3], [Batch(images, ids)])
    with pytest.raises(ValueError, match="1 of 2 batches have labels"):
        extract(encoder, [Batch(images, ids, ids), Batch(images, ids)])


def test_features_check_their_shapes():
    ids = torch.arange(3)
    with pytest.raises(ValueError, match=r"float32 \[N, D\]"):
        Features(torch.randn(3, 2).double(), None, ids)
    with pytest.raises(ValueError, match=r"labels must be int64 \[3\]"):
        Features(torch.randn(3, 2), torch.zeros(2, dtype=torch.int64), ids)
    with pytest.raises(ValueError, match=r"sample_ids must be int64 \[3\]"):
        Features(torch.randn(3, 2), None, ids.int())


def test_select_takes_rows_of_everything():
    features = Features(torch.randn(5, 2), torch.arange(5), torch.arange(5) * 10)
    chosen = features.select(torch.tensor([3, 1]))
    assert torch.equal(chosen.features, features.features[[3, 1]])
    assert chosen.labels.tolist() == [3, 1]
    assert chosen.sample_ids.tolist() == [30, 10]
    assert len(features.select(features.labels > 2)) == 2


PROTOCOLS = {"kNN": knn_accuracy, "linear probe": linear_probe}


def labeled(n=8, width=3):
    return Features(torch.randn(n, width), torch.arange(n) % 2, torch.arange(n))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_refuse_unusable_features(name):
    protocol = PROTOCOLS[name]
    good = labeled()
    without = Features(good.features, None, good.sample_ids)
    with pytest.raises(ValueError, match=rf"{name} needs labels, but the train set has none"):
        protocol(without, good)
    with pytest.raises(ValueError, match="needs labels, but the test set has none"):
        protocol(good, without)
    with pytest.raises(ValueError, match="the train set is empty"):
        protocol(labeled(0), good)
    with pytest.raises(ValueError, match="the test set is empty"):
        protocol(good, labeled(0))
    with pytest.raises(ValueError, match="train features have 4 columns and test features 3"):
        protocol(labeled(width=4), good)
    broken = labeled()
    broken.features[1, 0] = float("nan")
    broken.features[5] = float("inf")
    with pytest.raises(ValueError, match="2 of 8 rows of the test features are not finite"):
        protocol(good, broken)
    with pytest.raises(ValueError, match="2 of 8 rows of the train features are not finite"):
        protocol(broken, good)


def test_map_refuses_unusable_features():
    broken = labeled()
    broken.features[1, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of 8 rows"):
        embed_2d(broken)
    with pytest.raises(ValueError, match="empty"):
        embed_2d(labeled(0))


def test_importing_eval_needs_no_optional_package():
    code = (
        "import sys, sslfast.eval, sslfast.eval.plots\n"
        "assert not {'sklearn', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
