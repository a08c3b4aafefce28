"""Weighted kNN against a direct float64 loop over the samples."""

import math

import pytest
import torch

from sslfast.eval import Features, knn, knn_accuracy, knn_predict


def random_features(generator, n, width, classes):
    labels = torch.randint(classes, (n,), generator=generator)
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(n, width, generator=generator)
    return Features(centers[labels] + 1.5 * noise, labels, torch.arange(n))


def brute_force(train, test, k, temperature):
    """Wu et al. 2018, section 3.4, one sample at a time in float64."""
    predictions = []
    for x in test.features.double():
        similarity = [
            float(x @ y / (x.norm() * y.norm())) for y in train.features.double().unbind()
        ]
        nearest = sorted(range(len(similarity)), key=lambda i: -similarity[i])[:k]
        votes = {}
        for i in nearest:
            label = int(train.labels[i])
            votes[label] = votes.get(label, 0.0) + math.exp(similarity[i] / temperature)
        predictions.append(max(votes, key=votes.get))
    return predictions


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0)])
def test_equals_brute_force(generator, k, temperature):
    train = random_features(generator, 150, 7, 5)
    test = random_features(generator, 60, 7, 5)
    expected = brute_force(train, test, k, temperature)
    assert knn_predict(train, test, k, temperature).tolist() == expected
    correct = sum(int(a == b) for a, b in zip(expected, test.labels.tolist(), strict=True))
    assert knn_accuracy(train, test, k, temperature) == pytest.approx(correct / 60)


def test_chunks_do_not_change_the_result(generator, monkeypatch):
    train, test = (random_features(generator, n, 7, 5) for n in (90, 41))
    whole = knn_predict(train, test)
    monkeypatch.setattr(knn, "_CHUNK_ELEMENTS", 90 * 4)
    assert torch.equal(knn_predict(train, test), whole)
    monkeypatch.setattr(knn, "_CHUNK_ELEMENTS", 1)
    assert torch.equal(knn_predict(train, test), whole)


def test_k_beyond_the_train_set_means_all_of_it(generator):
    train, test = (random_features(generator, n, 7, 5) for n in (30, 20))
    assert torch.equal(knn_predict(train, test, k=1000), knn_predict(train, test, k=30))


def test_labels_need_not_be_contiguous(generator):
    train, test = (random_features(generator, n, 7, 5) for n in (80, 30))
    names = torch.tensor([100, -3, 7, 50_000_000_000, 0])
    renamed = Features(train.features, names[train.labels], train.sample_ids)
    assert torch.equal(knn_predict(renamed, test), names[knn_predict(train, test)])


def test_a_small_temperature_does_not_overflow():
    """exp(1 / 0.005) is infinite in float32; two close votes must still beat one a bit closer."""
    angles = torch.tensor([0.010, 0.012, 0.012, 0.5])
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    train = Features(points, torch.tensor([0, 1, 1, 0]), torch.arange(4))
    test = Features(torch.tensor([[1.0, 0.0]]), None, torch.arange(1))
    assert brute_force(train, test, 3, 0.005) == [1]
    assert knn_predict(train, test, k=3, temperature=0.005).tolist() == [1]


def test_equal_scores_go_to_the_nearer_class():
    """Two votes at the same similarity from different classes: the first neighbour decides."""
    train = Features(
        torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]),
        torch.tensor([4, 2, 2]),
        torch.arange(3),
    )
    test = Features(torch.tensor([[2.0, 0.0]]), None, torch.arange(1))
    assert knn_predict(train, test, k=2, temperature=1e9).tolist() == [4]
    assert knn_predict(train, test, k=3, temperature=1e9).tolist() == [2]


def test_only_directions_count(generator):
    train, test = (random_features(generator, n, 7, 5) for n in (80, 30))
    scaled = Features(test.features * 128.0, test.labels, test.sample_ids)
    assert torch.equal(knn_predict(train, scaled), knn_predict(train, test))


def test_arguments_are_checked(generator):
    train = random_features(generator, 10, 3, 2)
    with pytest.raises(ValueError, match="k must be at least 1"):
        knn_accuracy(train, train, k=0)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"temperature must be (more than 0|a finite number)"):
            knn_accuracy(train, train, temperature=temperature)
