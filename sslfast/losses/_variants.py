"""Variants of InfoNCE: other functions of the same two numbers a row, or of other candidates."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sslfast.kernels.similarity_softmax import info_nce_from_logits
from sslfast.losses._inputs import check_embeddings, check_labels


@dataclass(frozen=True)
class Variant:
    """How the loss of a row is made of its positive logit p and the log-sum-exp n of its negatives.

    Plain InfoNCE is log(e^p + e^n) - p. At most one of these may be chosen:

    Attributes:
        decoupled: n - p: the positive leaves the denominator (Yeh et al. 2021, arXiv:2110.06848,
            equation 6).
        debiased: tau+, the probability that a negative is of the row's own class; e^n is replaced
            by N max((e^n / N - tau+ e^p) / (1 - tau+), e^-s), N negatives and s = 1 / temperature
            (Chuang et al. 2020, arXiv:2007.00224, equations 7 and 8, with the positive as the one
            draw from the row's class). The floor e^-s supposes embeddings of unit length.
        label_smoothing: epsilon: the target is 1 - epsilon on the positive plus epsilon spread over
            all candidates, as in torch.nn.functional.cross_entropy (Szegedy et al. 2016).

    Raises:
        ValueError: values out of range, or more than one variant.
    """

    decoupled: bool = False
    debiased: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.debiased < 1:
            raise ValueError(f"debiased must be a probability below 1, got {self.debiased}")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {self.label_smoothing}")
        chosen = [f.name for f in fields(self) if getattr(self, f.name)]
        if len(chosen) > 1:
            raise ValueError(
                f"{' and '.join(chosen)} cannot be combined: each is a denominator or a target of "
                "its own; choose one"
            )

    def losses(
        self,
        lse: Tensor,
        positive: Tensor,
        scale: Tensor,
        negatives: int,
        mean_logit: Callable[[], Tensor],
        unit: bool,
    ) -> Tensor:
        """Losses of the rows.

        Args:
            lse: log-sum-exps over the negatives [M].
            positive: positive logits [M].
            scale: 1 / temperature, 0-d.
            negatives: of every row.
            mean_logit: gives the mean logit [M] over the candidates, the positive among them;
                called for label smoothing only.
            unit: whether embeddings are of unit length, so that no logit is infinite.

        Raises:
            ValueError: a decoupled or debiased loss without negatives.
        """
        if negatives < 1 and (self.decoupled or self.debiased):
            raise ValueError("a decoupled or debiased loss needs at least one negative: two pairs")
        if self.decoupled:
            return lse - positive
        if self.debiased:
            lse = _debiased(lse, positive, scale, negatives, self.debiased)
        loss = info_nce_from_logits(lse, positive, unit)
        if self.label_smoothing:
            loss = loss + self.label_smoothing * (positive - mean_logit())
        return loss


@dataclass(frozen=True)
class Candidates:
    """Which columns a row takes for positives and which for negatives.

    Attributes:
        positives: "outside": the mean over a row's positives of -log p (SupCon's L_out, Khosla et
            al. 2020, arXiv:2004.11362); "inside": -log of the sum of their p (MIL-NCE, Miech et al.
            2020, arXiv:1912.06430). The same for one positive.
        threshold: columns that are no positives but more similar than this, by inner product, are
            taken for false negatives and left out (Huynh et al. 2022, arXiv:2011.11765); None: none
            are.
        group_ids: int64 [N], one a pair; pairs of the same id are positives of each other.
        ignore_ids: int64 [N]; pairs of the same id are no negatives of each other. Below 0: none.
        negatives: [K, D], columns beside the batch that are negatives of every row.

    Raises:
        ValueError: another word for positives, or "inside" without group_ids.
    """

    positives: str = "outside"
    threshold: float | None = None
    group_ids: Tensor | None = None
    ignore_ids: Tensor | None = None
    negatives: Tensor | None = None

    def __post_init__(self) -> None:
        check_positives(self.positives)
        if self.positives == "inside" and self.group_ids is None:
            raise ValueError(
                "positives='inside' needs group_ids: without them every row has one positive"
            )

    @property
    def given(self) -> bool:
        """Whether anything is asked for that the plain loss does not do."""
        tensors = self.group_ids, self.ignore_ids, self.negatives
        return self.threshold is not None or any(t is not None for t in tensors)

    @property
    def several_outside(self) -> bool:
        """Whether losses are means over a row's positives, of which there may be several."""
        return self.positives == "outside" and self.group_ids is not None

    def check(
        self, variant: Variant, **features: Tensor
    ) -> tuple["Candidates", tuple[Tensor, ...]]:
        """Raise unless ids and negatives fit the features [N, D] and there is no variant.

        Args:
            variant: of the loss.
            features: by the names that messages use.

        Returns:
            The same candidates, and the features: with the negatives of one dtype.

        Raises:
            TypeError: ids that are no integers, negatives that are no embeddings.
            ValueError: shapes, dtypes or devices that do not fit, or a variant.
        """
        if variant != Variant():
            raise ValueError(
                "groups, ignored ids, a false-negative threshold and hard negatives cannot be "
                "combined with decoupled, debiased or label_smoothing: leave one or the other out"
            )
        first, *_ = features.values()
        for name in ("group_ids", "ignore_ids"):
            ids = getattr(self, name)
            if ids is not None:
                check_labels(first, ids, name)
        if self.negatives is None:
            return self, tuple(features.values())
        *found, negatives = check_embeddings(False, **features, negatives=self.negatives)
        return replace(self, negatives=negatives), tuple(found)


def check_positives(positives: str) -> None:
    """Raise ValueError unless it is "outside" or "inside"."""
    if positives not in ("outside", "inside"):
        raise ValueError(f"positives must be 'outside' or 'inside', got {positives!r}")


def _debiased(
    lse: Tensor, positive: Tensor, scale: Tensor, negatives: int, tau_plus: float
) -> Tensor:
    """Log of the debiased sum over the negatives, without leaving log space."""
    floor = math.log(negatives) - scale.abs()
    # log(e^lse - e^bias) = lse + log(1 - e^gap); nothing is left where gap >= 0, and NaN stays NaN.
    gap = math.log(tau_plus * negatives) + positive - lse
    empty = gap >= 0
    rest = torch.log(-torch.expm1(gap.masked_fill(empty, -1)))
    estimate = (lse + rest - math.log1p(-tau_plus)).masked_fill(empty, -torch.inf)
    return torch.maximum(estimate, floor)
