"""Is an uncertainty worth anything? What is kept when the least certain are rejected."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sslfast.eval.features import Features, labels_of
from sslfast.eval.linear import LinearProbe


@dataclass(frozen=True, eq=False)
class RejectionCurve:
    """The accuracy of the samples that are kept, by the share that is rejected.

    Attributes:
        rejected: shares 0, 1 / N ... (N - 1) / N, float64 [N].
        accuracy: of those that are kept, in [0, 1], float64 [N].
    """

    rejected: Tensor
    accuracy: Tensor

    @property
    def area(self) -> float:
        """Under the curve, in [0, 1]: the mean accuracy over all shares.

        One minus the area under the risk-coverage curve (Geifman et al. 2019, arXiv:1805.08206).
        """
        return float(self.accuracy.mean())


def rejection_curve(correct: Tensor, uncertainty: Tensor) -> RejectionCurve:
    """Reject the most uncertain samples first, and see how well the others were predicted.

    Equally uncertain samples are rejected in random order: what is given is the mean over all such
    orders, so the order of the samples does not matter. (El-Yaniv and Wiener 2010, JMLR 11, have
    the same curve as risk and coverage, which are 1 - accuracy and 1 - rejected.)

    Args:
        correct: whether each prediction was right, bool [N]; or how often, floats in [0, 1].
        uncertainty: of each, on any scale, floats [N].

    Raises:
        ValueError: no samples, other shapes, or an uncertainty that is no number.
    """
    if correct.dim() != 1 or correct.shape != uncertainty.shape or not len(correct):
        raise ValueError(
            f"correct and uncertainty must be [N] alike, N >= 1, got {list(correct.shape)} and "
            f"{list(uncertainty.shape)}"
        )
    if uncertainty.isnan().any():
        raise ValueError(f"{int(uncertainty.isnan().sum())} uncertainties are not a number")
    right = correct.double()
    _, level, size = uncertainty.unique(return_inverse=True, return_counts=True)  # ascending
    mean = right.new_zeros(len(size)).index_add(0, level, right) / size
    kept = torch.arange(1, len(right) + 1)
    accuracy = mean.repeat_interleave(size).cumsum(0) / kept
    return RejectionCurve((len(right) - kept).double().flip(0) / len(right), accuracy.flip(0))


def rejection_bounds(correct: Tensor) -> tuple[RejectionCurve, RejectionCurve]:
    """What the best order of these predictions gives, and what random order gives on average.

    The best rejects all errors first; random order keeps the accuracy, whatever the share.

    Args:
        correct: as of ``rejection_curve``.
    """
    right = correct.double()
    return rejection_curve(correct, -right), rejection_curve(correct, torch.zeros_like(right))


def probe_curves(
    probes: Sequence[LinearProbe], test: Features, variance: Tensor
) -> dict[str, RejectionCurve]:
    """How well linear probes do when uncertain samples are rejected, in different orders.

    Args:
        probes: at least one; each curve is the mean of theirs.
        test: labelled features of N samples.
        variance: an uncertainty of each, floats [N].

    Returns:
        By what is rejected first: the largest "variance", the least "confidence" of the probe (the
        probability of its class), and the bounds: errors ("ideal"), any ("random").
    """
    labels = labels_of(test, "test", "a rejection curve")
    curves = []
    for probe in probes:
        predicted, confidence = probe.predict(test)
        correct = predicted == labels
        orders = rejection_curve(correct, variance), rejection_curve(correct, -confidence)
        curves.append((*orders, *rejection_bounds(correct)))
    return {
        name: RejectionCurve(same[0].rejected, torch.stack([c.accuracy for c in same]).mean(0))
        for name, same in zip(
            ("variance", "confidence", "ideal", "random"), zip(*curves, strict=True), strict=True
        )
    }
