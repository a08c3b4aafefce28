"""Linear probe: multinomial logistic regression on frozen features."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslfast._arguments import Part, PositiveInt, Seed, checked
from sslfast._renamed import PROBE_RESULT, accepts_old_names
from sslfast.eval.features import Features, check_same_width, labels_of

# Candidates for lambda, strongest first.
REGULARIZATIONS = (1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# Where no label can be held out to choose with.
DEFAULT_REGULARIZATION = 1e-1
_HELD_OUT_FRACTION = 0.2
# Newton steps, and products with the Hessian in each: far more than a fit takes.
_MAX_STEPS, _MAX_PRODUCTS = 200, 1000
# How near a fit comes to its optimum: the final one, and those that only choose lambda, whose
# held-out cross-entropies are then within about 0.3 %.
_FINAL, _CHOOSING = 1e-3, 5e-2


@accepts_old_names(PROBE_RESULT)
@dataclass(frozen=True)
class ProbeResult:
    """What a linear probe found.

    Attributes:
        accuracy: top-1 on the test set, in [0, 1].
        train_accuracy: top-1 on the labels it was fitted to.
        validation_accuracy: top-1 on the held-out labels that chose the regularisation, or None
            where there were too few labels to hold any out.
        regularization: the chosen lambda.
        n_labels: train labels used, those held out for the choice included.
        n_classes: classes among them.
        n_test: test samples.
    """

    accuracy: float
    train_accuracy: float
    validation_accuracy: float | None
    regularization: float
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

    by Newton's method in float64, to the optimum: probabilities are those of scikit-learn's
    LogisticRegression(C=1 / (n lambda)) to a few thousandths (C=2 / (n lambda) for two classes,
    which it gives one weight vector), and a fit that ends elsewhere warns.
    Lambda is the one of REGULARIZATIONS with the lowest cross-entropy on a held-out fifth of the
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
    x, x_test = _standardize(train.features, test.features)
    x = x[drawn]
    classes, y = train_labels[drawn].unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError("a linear probe needs train labels of at least two classes, got one")

    regularization, validation_accuracy = _choose_regularization(x, y)
    classifier = _Classifier.fit(_Basis.of(x), x, y, regularization, _FINAL)
    predictions = classes[classifier.logits(x_test).argmax(dim=1)]
    return ProbeResult(
        accuracy=float((predictions == test_labels).double().mean()),
        train_accuracy=classifier.accuracy(x, y),
        validation_accuracy=validation_accuracy,
        regularization=regularization,
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


def _choose_regularization(x: Tensor, y: Tensor) -> tuple[float, float | None]:
    """The lambda with the lowest held-out cross-entropy, and its accuracy there.

    Cross-entropy, because the accuracy of a few samples is mostly noise. Candidates go from strong
    to weak until it rises: weak ones take longest to fit.
    """
    held_out = _held_out(y)
    if not held_out.any():
        return DEFAULT_REGULARIZATION, None
    x_fit, y_fit = x[~held_out], y[~held_out]
    x_held, y_held = x[held_out], y[held_out]
    basis = _Basis.of(x_fit)
    chosen, accuracy, lowest = REGULARIZATIONS[0], 0.0, math.inf
    for candidate in REGULARIZATIONS:
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


def _standardize(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
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
        cls, basis: _Basis, x: Tensor, y: Tensor, regularization: float, precision: float
    ) -> "_Classifier":
        """Minimise the objective of linear_probe().

        The variables are the weights in the singular basis (with the bias as the last column),
        divided by ``scale``: the Hessian at zero, p (1 - p) s^2 / n + lambda with p = 1 / C,
        becomes about the identity.

        The curvature is never below the scaled penalty, so a gradient g leaves at most g / penalty
        to the optimum. At weak regularisation a gradient that looks small is therefore far from
        it: the tolerance is ``precision`` times the least penalty.

        Warns:
            RuntimeWarning: the gradient did not come down to the tolerance.
        """
        num_samples, num_classes = len(y), int(y.max()) + 1
        ones = x.new_ones(num_samples, 1)
        inputs = torch.cat([x @ basis.vectors, ones], dim=1)
        curvature = torch.cat([basis.values**2 / num_samples, x.new_ones(1)]) / num_classes
        penalty = torch.cat([x.new_full((len(basis.values),), regularization), x.new_zeros(1)])
        scale = (curvature + penalty).rsqrt()
        inputs, penalty = inputs * scale, penalty * scale**2

        tolerance = min(1e-4, precision * float(penalty[:-1].min())) if len(basis.values) else 1e-4
        solution, left = _newton(inputs, y, num_classes, penalty, tolerance)
        if not left <= tolerance:  # also where it is not a number
            warnings.warn(
                f"the linear probe has not converged at lambda = {regularization:g}: its gradient "
                f"is {left:.1e}, wanted {tolerance:.1e}; its accuracy may be too low",
                RuntimeWarning,
                stacklevel=2,
            )
        weights = (solution * scale).T
        return cls(basis.vectors @ weights[:-1], weights[-1])


def _newton(
    inputs: Tensor, y: Tensor, num_classes: int, penalty: Tensor, tolerance: float
) -> tuple[Tensor, float]:
    """Minimise mean cross_entropy(inputs @ w.T, y) + (penalty * w^2).sum() / 2 by Newton's method.

    The curvature of separable data falls by orders of magnitude on the way to the optimum at a weak
    penalty. Newton's method follows it, where one that learns it from past gradients creeps.

    Args:
        inputs: float64 [n, K].
        y: classes, int64 [n].
        num_classes: C.
        penalty: [K], at least zero.
        tolerance: ends when no component of the gradient is larger.

    Returns:
        w [C, K], and the largest component of its gradient.
    """
    rows = torch.arange(len(y))
    squares = inputs.square()
    solution = inputs.new_zeros(num_classes, inputs.shape[1])
    logits = inputs @ solution.T

    def objective(logits: Tensor, solution: Tensor) -> float:
        return float(F.cross_entropy(logits, y) + (penalty * solution**2).sum() / 2)

    value = objective(logits, solution)
    for taken in range(_MAX_STEPS + 1):
        probabilities = logits.softmax(dim=1)
        errors = probabilities.clone()
        errors[rows, y] -= 1
        gradient = errors.T @ inputs / len(y) + penalty * solution
        left = float(gradient.abs().max())
        if left <= tolerance or taken == _MAX_STEPS:
            break

        def hessian(direction: Tensor, p: Tensor = probabilities) -> Tensor:
            change = p * (inputs @ direction.T)
            change -= p * change.sum(dim=1, keepdim=True)
            return change.T @ inputs / len(y) + penalty * direction

        # The diagonal of the Hessian, averaged over the classes.
        variances = (probabilities * (1 - probabilities)).mean(dim=1)
        diagonal = variances @ squares / len(y) + penalty
        step = _conjugate_gradients(hessian, -gradient, diagonal)
        slope, change, size = float((gradient * step).sum()), inputs @ step.T, 1.0
        # Near the optimum a step gains less than rounding loses: that much is allowed for.
        allowed = value + 1e-14 * (1 + value)
        while (lower := objective(logits + size * change, solution + size * step)) > (
            allowed + 1e-4 * size * slope
        ):
            size /= 2
        solution, logits, value = solution + size * step, logits + size * change, lower
    return solution, left


def _conjugate_gradients(
    hessian: Callable[[Tensor], Tensor], target: Tensor, diagonal: Tensor
) -> Tensor:
    """Solve hessian(step) = target to a quarter of its norm, preconditioned by ``diagonal``.

    More precision costs more products than it saves Newton steps.
    """
    step, residual = torch.zeros_like(target), target
    direction = residual / diagonal
    norm = first = (residual * direction).sum()
    for _ in range(_MAX_PRODUCTS):
        product = hessian(direction)
        size = norm / (direction * product).sum()
        step, residual = step + size * direction, residual - size * product
        scaled = residual / diagonal
        previous, norm = norm, (residual * scaled).sum()
        if norm <= first / 16:
            break
        direction = scaled + norm / previous * direction
    return step
