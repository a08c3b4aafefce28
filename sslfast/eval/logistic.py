"""Multinomial logistic regression to its optimum, with a penalty chosen on held-out labels."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Candidates for lambda, strongest first.
REGULARIZATIONS = (1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# Where no label can be held out to choose with.
DEFAULT_REGULARIZATION = 1e-1
_HELD_OUT_FRACTION = 0.2
# Newton steps, and products with the Hessian in each: far more than a fit takes.
_MAX_STEPS, _MAX_PRODUCTS = 200, 1000
# How near a fit comes to its optimum: the final one, and those that only choose lambda, whose
# held-out cross-entropies are then within about 0.3 %.
FINAL, _CHOOSING = 1e-3, 5e-2


def choose_regularization(x: Tensor, y: Tensor) -> tuple[float, float | None]:
    """The lambda with the lowest held-out cross-entropy, and its accuracy there.

    Cross-entropy, because the accuracy of a few samples is mostly noise. Candidates go from strong
    to weak until it rises: weak ones take longest to fit.
    """
    held_out = _held_out(y)
    if not held_out.any():
        return DEFAULT_REGULARIZATION, None
    x_fit, y_fit = x[~held_out], y[~held_out]
    x_held, y_held = x[held_out], y[held_out]
    basis = Basis.of(x_fit)
    chosen, accuracy, lowest = REGULARIZATIONS[0], 0.0, math.inf
    for candidate in REGULARIZATIONS:
        classifier = Classifier.fit(basis, x_fit, y_fit, candidate, _CHOOSING)
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


@dataclass(frozen=True)
class Scaling:
    """What standardises columns: their means [D] and one over their deviations, float64.

    Constant columns become 0.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, reference: Tensor) -> "Scaling":
        """That of some rows [N, D]."""
        deviation, mean = torch.std_mean(reference.double(), dim=0, correction=0)
        # Rounding leaves a constant column a deviation of up to about one float32 epsilon.
        constant = deviation <= torch.finfo(torch.float32).eps * mean.abs()
        return cls(mean, torch.where(constant, 0.0, 1.0 / deviation))

    def __call__(self, x: Tensor) -> Tensor:
        """Rows [N, D], standardised, as float64."""
        return (x.double() - self.mean) * self.scale


@dataclass(frozen=True)
class Basis:
    """Right singular vectors [D, r] of the data and its singular values [r].

    The regularised solution lies in their span, so a problem with fewer samples than columns
    shrinks to r <= n; and they make the preconditioner of the fit diagonal.
    """

    vectors: Tensor
    values: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Basis":
        """That of rows float64 [N, D]."""
        wide = x.shape[0] < x.shape[1]
        squares, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
        kept = squares > 1e-12 * squares[-1]
        values, vectors = squares[kept].sqrt(), vectors[:, kept]
        return cls(x.T @ (vectors / values) if wide else vectors, values)


@dataclass(frozen=True)
class Classifier:
    """Logits x @ weight + bias, for weight [D, C] and bias [C]."""

    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Rows [N, D] -> [N, C]."""
        return x @ self.weight + self.bias

    def accuracy(self, x: Tensor, y: Tensor) -> float:
        """The part of the rows whose largest logit is that of their class ``y`` [N]."""
        return float((self.logits(x).argmax(dim=1) == y).double().mean())

    @classmethod
    def fit(
        cls, basis: Basis, x: Tensor, y: Tensor, regularization: float, precision: float
    ) -> "Classifier":
        """Minimise the objective of sslfast.eval.linear_probe.

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
