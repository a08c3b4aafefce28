"""Linear probe: multinomial logistic regression on frozen features."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._arguments import Part, PositiveInt, Seed, checked
from sslfast.eval.features import Features, check_same_width, labels_of

# Candidates for lambda, strongest first.
REGULARISATIONS = (1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# Where no label can be held out to choose with.
DEFAULT_REGULARISATION = 1e-1
_HELD_OUT_FRACTION = 0.2
_MAX_ITERATIONS = 5000
# How near a fit comes to its optimum: the final one, and those that only choose lambda, whose
# held-out cross-entropies are then within about 0.3 %.
_FINAL, _CHOOSING = 1e-3, 5e-2


@dataclass(frozen=True)
class ProbeResult:
    """What a linear probe found.

    Attributes:
        accuracy: top-1 on the test set, in [0, 1].
        train_accuracy: top-1 on the labels it was fitted to.
        validation_accuracy: top-1 on the held-out labels that chose the regularisation, or None
            where there were too few labels to hold any out.
        regularisation: the chosen lambda.
        n_labels: train labels used, those held out for the choice included.
        n_classes: classes among them.
        n_test: test samples.
    """

    accuracy: float
    train_accuracy: float
    validation_accuracy: float | None
    regularisation: float
    n_labels: int
    n_classes: int
    n_test: int


@checked
def linear_probe(
    train: Features,
    test: Features,
    labels_per_class: PositiveInt | None = None,
    label_fraction: Part | None = None,
    seed: Seed = 0,
) -> ProbeResult:
    """Fit a linear classifier to frozen train features and report its accuracy on the test set.

    The features are standardised by the mean and deviation of all train features (the encoder has
    seen those without labels). The classifier minimises

        mean_i cross_entropy(W x_i + b, y_i) + (lambda / 2) |W|^2

    by L-BFGS in float64, to the optimum: probabilities are those of scikit-learn's
    LogisticRegression(C=1 / (n lambda)) to a few thousandths, and a fit that ends elsewhere warns.
    Lambda is the one of REGULARISATIONS with the lowest cross-entropy on a held-out fifth of the
    drawn train labels; the classifier is then fitted again to all of them. The test set is looked
    at once. The same seed gives the same result.

    Args:
        train: labelled train features.
        test: labelled test features. A class that no train label has counts as errors.
        labels_per_class: use this many train labels of each class; None: no such limit.
        label_fraction: use this part, in (0, 1], of the train labels of each class, at least one.
        seed: draws the labels and the held-out part.

    Raises:
        ValueError: a class has fewer labels than ``labels_per_class``; both limits are given, or
            one out of range; fewer than two classes; features without labels, empty, not finite,
            or of different widths.
    """
    train_labels = labels_of(train, "train", "a linear probe")
    test_labels = labels_of(test, "test", "a linear probe")
    check_same_width(train, test)
    drawn = draw_labels(train, labels_per_class, label_fraction, seed)
    x, x_test = _standardise(train.features, test.features)
    x = x[drawn]
    classes, y = train_labels[drawn].unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError("a linear probe needs train labels of at least two classes, got one")

    regularisation, validation_accuracy = _choose_regularisation(x, y)
    classifier = _Classifier.fit(_Basis.of(x), x, y, regularisation, _FINAL)
    predictions = classes[classifier.logits(x_test).argmax(dim=1)]
    return ProbeResult(
        accuracy=float((predictions == test_labels).double().mean()),
        train_accuracy=classifier.accuracy(x, y),
        validation_accuracy=validation_accuracy,
        regularisation=regularisation,
        n_labels=len(y),
        n_classes=len(classes),
        n_test=len(test),
    )


@checked
def draw_labels(
    features: Features,
    labels_per_class: PositiveInt | None = None,
    label_fraction: Part | None = None,
    seed: Seed = 0,
) -> Tensor:
    """Draw labelled samples of every class.

    Each class has one random order, fixed by ``seed`` and the sample ids, and a draw takes the
    first of it: a larger draw holds every smaller one, and the order of the rows has no influence.

    Args:
        features: labelled features.
        labels_per_class: exactly this many of each class.
        label_fraction: this part, in (0, 1], of each class, rounded, at least one.
        seed: fixes the order.

    Returns:
        Row numbers, int64 [n], class by class in the order drawn; all rows where neither limit is
        given.

    Raises:
        ValueError: both limits, or one out of range, or a class with too few labels.
    """
    if labels_per_class is not None and label_fraction is not None:
        raise ValueError("give labels_per_class or label_fraction, not both")
    labels = labels_of(features, "train", "a linear probe").numpy()
    sample_ids = features.sample_ids.numpy()
    drawn = []
    for position, label in enumerate(np.unique(labels)):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(sample_ids[rows], kind="stable")]
        # Raw words of a bit generator: NumPy keeps these the same in every version.
        words = np.random.PCG64([seed, position]).random_raw(len(rows))
        rows = rows[np.argsort(words, kind="stable")]
        count = len(rows)
        if labels_per_class is not None:
            count = labels_per_class
        elif label_fraction is not None:
            count = max(1, round(label_fraction * len(rows)))
        if count > len(rows):
            raise ValueError(
                f"class {label} has {len(rows)} train labels, fewer than labels_per_class="
                f"{count}: ask for at most {len(rows)}, or use label_fraction"
            )
        drawn.append(rows[:count])
    return torch.from_numpy(np.concatenate(drawn))


def _choose_regularisation(x: Tensor, y: Tensor) -> tuple[float, float | None]:
    """The lambda with the lowest held-out cross-entropy, and its accuracy there.

    Cross-entropy, because the accuracy of a few samples is mostly noise. Candidates go from strong
    to weak until it rises: weak ones take longest to fit.
    """
    held_out = _held_out(y)
    if not held_out.any():
        return DEFAULT_REGULARISATION, None
    x_fit, y_fit = x[~held_out], y[~held_out]
    x_held, y_held = x[held_out], y[held_out]
    basis = _Basis.of(x_fit)
    chosen, accuracy, lowest = REGULARISATIONS[0], 0.0, math.inf
    for candidate in REGULARISATIONS:
        classifier = _Classifier.fit(basis, x_fit, y_fit, candidate, _CHOOSING)
        loss = float(F.cross_entropy(classifier.logits(x_held), y_held))
        if loss > lowest:
            break
        chosen, accuracy, lowest = candidate, classifier.accuracy(x_held, y_held), loss
    return chosen, accuracy


def _held_out(labels: Tensor) -> Tensor:
    """Marks the last fifth of each class, at least one sample unless it is the only one."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) > 1:
            held_out[rows[-max(1, int(_HELD_OUT_FRACTION * len(rows))) :]] = True
    return held_out


def _standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64, by the column means and deviations of ``train``; constant columns to 0."""
    reference = train.double()
    deviation, mean = torch.std_mean(reference, dim=0, correction=0)
    # Rounding leaves a constant column a deviation of up to about one float32 epsilon.
    constant = deviation <= torch.finfo(torch.float32).eps * mean.abs()
    scale = torch.where(constant, 0.0, 1.0 / deviation)
    return (reference - mean) * scale, (test.double() - mean) * scale


@dataclass(frozen=True)
class _Basis:
    """Right singular vectors [D, r] of the data and its singular values [r].

    The regularised solution lies in their span, so a problem with fewer samples than columns
    shrinks to r <= n; and they make the preconditioner of the fit diagonal.
    """

    vectors: Tensor
    values: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "_Basis":
        wide = x.shape[0] < x.shape[1]
        squares, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
        kept = squares > 1e-12 * squares[-1]
        values, vectors = squares[kept].sqrt(), vectors[:, kept]
        return cls(x.T @ (vectors / values) if wide else vectors, values)


@dataclass(frozen=True)
class _Classifier:
    """Logits x @ weight + bias, for weight [D, C] and bias [C]."""

    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias

    def accuracy(self, x: Tensor, y: Tensor) -> float:
        return float((self.logits(x).argmax(dim=1) == y).double().mean())

    @classmethod
    def fit(
        cls, basis: _Basis, x: Tensor, y: Tensor, regularisation: float, precision: float
    ) -> "_Classifier":
        """Minimise the objective of linear_probe() by L-BFGS.

        The variables are the weights in the singular basis (with the bias as the last row), divided
        by ``scale``: the Hessian at zero, p (1 - p) s^2 / n + lambda with p = 1 / C, becomes about
        the identity, which takes a third of the iterations of the plain problem or less.

        The curvature is never below the scaled penalty, so a gradient g leaves at most g / penalty
        to the optimum. At weak regularisation a gradient that looks small is therefore far from
        it: the tolerance is ``precision`` times the least penalty.

        Warns:
            RuntimeWarning: the gradient did not come down to ten times the tolerance.
        """
        num_samples, num_classes = len(y), int(y.max()) + 1
        ones = x.new_ones(num_samples, 1)
        inputs = torch.cat([x @ basis.vectors, ones], dim=1)
        curvature = torch.cat([basis.values**2 / num_samples, x.new_ones(1)]) / num_classes
        penalty = torch.cat([x.new_full((len(basis.values),), regularisation), x.new_zeros(1)])
        scale = (curvature + penalty).rsqrt()
        inputs, penalty = inputs * scale, (penalty * scale**2)[:, None]

        tolerance = min(1e-4, precision * float(penalty[:-1].min())) if len(basis.values) else 1e-4
        solution = x.new_zeros(len(scale), num_classes, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [solution],
            max_iter=_MAX_ITERATIONS,
            tolerance_grad=tolerance,
            tolerance_change=0.0,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            optimiser.zero_grad()
            loss = F.cross_entropy(inputs @ solution, y) + (penalty * solution**2).sum() / 2
            loss.backward()
            return loss

        optimiser.step(objective)
        objective()  # the line search may have left the gradient of another point
        assert solution.grad is not None
        left = float(solution.grad.abs().max())
        if left > 10 * tolerance:  # in between, rounding ends the line search at times
            warnings.warn(
                f"the linear probe has not converged at lambda = {regularisation:g}: its gradient "
                f"is {left:.1e}, wanted {tolerance:.1e}; its accuracy may be too low",
                RuntimeWarning,
                stacklevel=2,
            )
        weights = solution.detach() * scale[:, None]
        return cls(basis.vectors @ weights[:-1], weights[-1])
