"""The linear probe: its optimum, its draw of labels, its choice of regularisation."""

import pytest
import torch
import torch.nn.functional as F

from sslfast.eval import Features, linear, linear_probe, logistic
from sslfast.eval.labels import draw_labels


def blobs(n_per_class, classes=4, width=10, distance=6.0, seed=0):
    """Gaussian classes; at a distance of 6 deviations they are separable."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.nn.functional.normalize(
        torch.randn(classes, width, generator=torch.Generator().manual_seed(99)), dim=1
    )
    labels = torch.arange(classes).repeat(n_per_class)
    noise = torch.randn(len(labels), width, generator=generator)
    return Features(distance * centers[labels] + noise, labels, torch.arange(len(labels)))


def draw(features, *limits, **keywords):
    return draw_labels(features.labels, features.sample_ids, *limits, **keywords)


def test_separable_classes():
    result = linear_probe(blobs(50), blobs(50, seed=1))
    assert result.accuracy > 0.97
    assert result.train_accuracy > 0.97
    assert result.n_labels == 200
    assert result.n_classes == 4
    assert result.n_test == 200
    assert result.regularization in logistic.REGULARIZATIONS


def test_random_labels_give_chance():
    train, test = blobs(100), blobs(250, seed=1)
    generator = torch.Generator().manual_seed(2)
    train, test = (
        Features(f.features, torch.randint(4, (len(f),), generator=generator), f.sample_ids)
        for f in (train, test)
    )
    assert linear_probe(train, test).accuracy == pytest.approx(0.25, abs=0.06)


def test_same_seed_same_result_and_input_order_does_not_matter():
    train, test = blobs(40, distance=1.5), blobs(40, distance=1.5, seed=1)
    first = linear_probe(train, test, labels_per_class=10, seed=3)
    assert linear_probe(train, test, labels_per_class=10, seed=3) == first
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    shuffled = train.select(order)
    drawn = train.sample_ids[draw(train, 10, seed=3)]
    assert torch.equal(shuffled.sample_ids[draw(shuffled, 10, seed=3)], drawn)
    again = linear_probe(shuffled, test, labels_per_class=10, seed=3)
    assert again.accuracy == pytest.approx(first.accuracy, abs=1e-12)


@pytest.mark.parametrize(("n_per_class", "width"), [(30, 6), (8, 60)], ids=["tall", "wide"])
@pytest.mark.parametrize("regularization", [1.0, 1e-3])
def test_fit_reaches_the_optimum(n_per_class, width, regularization):
    """At the optimum of the objective, as documented, its gradient vanishes."""
    data = blobs(n_per_class, width=width, distance=2.0)
    x = torch.cat([data.features, data.features[:, :1]], dim=1).double()  # a repeated column
    basis = logistic.Basis.of(x)
    classifier = logistic.Classifier.fit(basis, x, data.labels, regularization, logistic.FINAL)
    weight, bias = (part.requires_grad_() for part in (classifier.weight, classifier.bias))
    loss = F.cross_entropy(x @ weight + bias, data.labels)
    (loss + regularization / 2 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 3e-3
    assert bias.grad.abs().max() < 1e-3


@pytest.mark.parametrize(
    ("samples", "classes", "width", "regularization"),
    [(160, 4, 10, 1e-2), (240, 12, 24, 1e-5), (100, 5, 200, 1e-5)],
    ids=["usual", "weak", "weak and wide"],
)
def test_fit_agrees_with_scikit_learn(samples, classes, width, regularization):
    """At weak regularisation a small gradient is still far from the optimum."""
    from sklearn.linear_model import LogisticRegression

    shape = {"classes": classes, "width": width, "distance": 3.0}
    train, test = blobs(samples // classes, **shape), blobs(5, **shape, seed=1)
    x, x_test = map(logistic.Scaling.of(train.features), (train.features, test.features))
    classifier = logistic.Classifier.fit(
        logistic.Basis.of(x), x, train.labels, regularization, logistic.FINAL
    )
    peer = LogisticRegression(C=1 / (regularization * len(x)), tol=1e-9, max_iter=5000)
    peer.fit(x.numpy(), train.labels.numpy())
    expected = torch.from_numpy(peer.predict_proba(x_test.numpy()))
    actual = classifier.logits(x_test).softmax(dim=1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-3)


def test_two_separable_classes_at_a_weak_penalty():
    """The curvature falls far below that at the start, and the singular values are far apart."""
    from sklearn.linear_model import LogisticRegression

    data = blobs(10, classes=2, width=16)
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(16, 16, generator=generator).double()
    x = data.features.double() * torch.logspace(0, -3, 16).double() @ mix
    x = logistic.Scaling.of(x)(x)
    classifier = logistic.Classifier.fit(logistic.Basis.of(x), x, data.labels, 1e-5, logistic.FINAL)
    peer = LogisticRegression(C=2 / (1e-5 * len(x)), solver="newton-cholesky", tol=1e-9)
    peer.fit(x.numpy(), data.labels.numpy())
    expected = torch.from_numpy(peer.decision_function(x.numpy()))
    logits = classifier.logits(x)
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], expected, rtol=1e-4, atol=0)


def test_a_fit_that_has_not_converged_says_so(monkeypatch):
    monkeypatch.setattr(logistic, "_MAX_STEPS", 3)
    data = blobs(30, distance=2.0)
    x = data.features.double()
    with pytest.warns(RuntimeWarning, match="not converged at lambda = 1e-05"):
        logistic.Classifier.fit(logistic.Basis.of(x), x, data.labels, 1e-5, logistic.FINAL)


def test_standardisation_uses_train_statistics_and_silences_constant_columns():
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(50, 3, generator=generator) * 5 + 2
    train[:, 1] = 0.1
    test = torch.randn(20, 3, generator=generator)
    x, x_test = map(logistic.Scaling.of(train), (train, test))
    torch.testing.assert_close(x[:, [0, 2]].mean(0), torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(x[:, [0, 2]].std(0, correction=0), torch.ones(2).double())
    assert torch.equal(x[:, 1], torch.zeros(50).double())
    assert torch.equal(x_test[:, 1], torch.zeros(20).double())
    wanted = (test.double() - train.double().mean(0)) / train.double().std(0, correction=0)
    torch.testing.assert_close(x_test[:, [0, 2]], wanted[:, [0, 2]])


def test_choice_of_regularisation_looks_at_no_test_label():
    train, test = blobs(30, distance=1.5), blobs(30, distance=1.5, seed=1)
    wrong = Features(test.features, test.labels.flip(0), test.sample_ids)
    right, other = linear_probe(train, test), linear_probe(train, wrong)
    assert right.regularization == other.regularization
    assert right.validation_accuracy == other.validation_accuracy
    assert right.accuracy != other.accuracy


def test_a_head_is_the_probe_of_its_features_as_they_are():
    """With all labels drawn, standardisation is by the same rows, and the predictions agree."""
    train, test = blobs(10, distance=2.0), blobs(40, distance=2.0, seed=1)
    train.features.mul_(3).add_(5)
    test.features.mul_(3).add_(5)
    drawn = train.select(draw(train))  # in its order, whose last rows choose the penalty
    head = linear.linear_head(drawn.features, drawn.labels)
    accuracy = (head(test.features).argmax(1) == test.labels).double().mean()
    assert accuracy == linear_probe(train, test).accuracy
    assert head.weight.dtype == torch.float32
    assert head.weight.requires_grad


def test_held_out_part_is_a_fifth_of_each_class():
    labels = torch.tensor([0] * 10 + [1] * 3 + [2])
    held_out = logistic._held_out(labels)
    assert labels[held_out].tolist() == [0, 0, 1]


def test_one_label_per_class_uses_the_default_regularisation():
    result = linear_probe(blobs(20), blobs(50, seed=1), labels_per_class=1)
    assert result.validation_accuracy is None
    assert result.regularization == logistic.DEFAULT_REGULARIZATION
    assert result.n_labels == 4
    assert result.accuracy > 0.6


def test_collapsed_features_give_chance_without_a_warning():
    train, test = blobs(20), blobs(20, seed=1)
    train, test = (
        Features(torch.full_like(f.features, 0.3), f.labels, f.sample_ids) for f in (train, test)
    )
    assert linear_probe(train, test).accuracy == 0.25


def test_test_classes_unseen_in_training_count_as_errors():
    train, test = blobs(50), blobs(50, seed=1)
    result = linear_probe(train.select(train.labels < 3), test)
    assert result.n_classes == 3
    assert 0.7 < result.accuracy <= 0.75


def test_labels_keep_their_own_numbers():
    numbers = torch.tensor([7, -1, 100, 3])
    train, test = (
        Features(f.features, numbers[f.labels], f.sample_ids)
        for f in (blobs(50), blobs(50, seed=1))
    )
    assert linear_probe(train, test).accuracy > 0.97


@pytest.mark.parametrize("count", [1, 3, 20])
def test_draw_takes_exactly_that_many_of_each_class(count):
    features = blobs(20)
    drawn = draw(features, labels_per_class=count)
    assert len(drawn.unique()) == len(drawn)
    assert torch.bincount(features.labels[drawn]).tolist() == [count] * 4


def test_draws_are_nested_and_seeded():
    features = blobs(30)
    small, large, other = (
        set(draw(features, count, seed=seed).tolist()) for count, seed in ((5, 0), (12, 0), (12, 1))
    )
    assert small < large
    assert large != other
    assert set(draw(features, seed=5).tolist()) == set(range(len(features)))


def test_fraction_is_per_class_and_at_least_one():
    features = blobs(20).select(torch.arange(80)[: 80 - 3])
    counts = torch.bincount(features.labels)
    drawn = draw(features, label_fraction=0.25)
    expected = [max(1, round(0.25 * n)) for n in counts.tolist()]
    assert torch.bincount(features.labels[drawn]).tolist() == expected
    assert len(draw(features, label_fraction=0.001)) == 4
    assert len(draw(features, label_fraction=1.0)) == len(features)


def test_too_few_labels_name_the_class_and_the_count():
    features = blobs(20)
    features = features.select((features.labels != 2) | (features.sample_ids < 40))
    with pytest.raises(ValueError, match=r"class 2 has 10 train labels, fewer than .*=11"):
        linear_probe(features, features, labels_per_class=11)


def test_arguments_are_checked():
    features = blobs(5)
    with pytest.raises(ValueError, match="not both"):
        linear_probe(features, features, labels_per_class=1, label_fraction=0.5)
    with pytest.raises(ValueError, match="labels_per_class must be at least 1"):
        linear_probe(features, features, labels_per_class=0)
    for fraction in (0.0, 1.5, float("nan")):
        with pytest.raises(
            ValueError, match=r"label_fraction must be (more than 0|at most 1|a finite number)"
        ):
            linear_probe(features, features, label_fraction=fraction)
    single = features.select(features.labels == 0)
    with pytest.raises(ValueError, match="at least two classes"):
        linear_probe(single, features)


def test_a_fitted_probe_gives_classes_and_their_probabilities():
    train, test = blobs(40, distance=2.0), blobs(40, distance=2.0, seed=1)
    train = Features(train.features, 10 * train.labels, train.sample_ids)
    test = Features(test.features, 10 * test.labels, test.sample_ids)
    probe = linear.LinearProbe.fit(train, 20, seed=3)
    assert probe.score(test) == linear_probe(train, test, 20, seed=3)
    predicted, sure = probe.predict(test)
    assert set(predicted.tolist()) == {0, 10, 20, 30}
    right = (predicted == test.labels).double()
    assert float(right.mean()) == probe.score(test).accuracy < 1
    assert 0.25 <= float(sure.min()) <= float(sure.max()) <= 1
    assert float(right[sure > sure.median()].mean()) > float(right.mean())
