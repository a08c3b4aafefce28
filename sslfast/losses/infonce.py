"""InfoNCE with given keys; its class has the constructor and forward of info-nce-pytorch's."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._arguments import checked
from sslfast.kernels.dtypes import statistics_dtype
from sslfast.kernels.exchange import name_of, world_size
from sslfast.kernels.info_nce.op import runs_fused, weighted_info_nce
from sslfast.kernels.info_nce.pairs import scaled_pairs
from sslfast.kernels.linear_cross_entropy.op import weighted_linear_cross_entropy
from sslfast.kernels.similarity_softmax import Pairing, info_nce_from_logits
from sslfast.kernels.similarity_softmax.op import similarity_softmax
from sslfast.kernels.similarity_softmax.ranks import global_pair_rows
from sslfast.kernels.unit_rows.op import unit_rows
from sslfast.kernels.unit_rows.op import wide_unit_rows as unit
from sslfast.losses._inputs import (
    check_embeddings,
    check_reduction,
    check_temperature,
    reduce,
    row_weights,
    scale_in_halves,
    scale_of,
)
from sslfast.losses._variants import Candidates, Variant, check_positives


@checked
def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    negative_mode: str = "unpaired",
    *,
    decoupled: bool = False,
    debiased: float = 0.0,
    label_smoothing: float = 0.0,
    in_batch: bool = False,
    group_ids: Tensor | None = None,
    positives: str = "outside",
    ignore_ids: Tensor | None = None,
    false_negative_threshold: float | None = None,
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, equation 4) on cosine similarities.

    Args:
        query: [N, D].
        positive_key: the key of each query [N, D].
        negative_keys: None: the other queries' keys; "unpaired": [K, D], shared by all queries;
            "paired": [N, K, D], each query's own.
        temperature: a number, or a 0-d tensor, which may need a gradient.
        reduction: "mean", "sum" or "none" (losses [N]).
        negative_mode: "unpaired" or "paired".
        decoupled: leave the positive out of the denominator (Yeh et al. 2021, equation 6).
        debiased: tau+, the share of false negatives to correct for, in [0, 1) (Chuang
            et al. 2020, equation 8).
        label_smoothing: share of the target spread over all candidates, as F.cross_entropy does.
        in_batch: the other queries' keys are negatives beside unpaired negative_keys too, which
            then are hard negatives; without negative_keys they are so in any case.
        group_ids: int64 [N]: in-batch keys of the same id are positives of each other's queries.
        positives: "outside": the mean over a query's positives of -log p (SupCon's L_out, Khosla et
            al. 2020, arXiv:2004.11362), "inside": -log of the sum of p (MIL-NCE, Miech et al. 2020,
            arXiv:1912.06430), which needs group_ids.
        ignore_ids: int64 [N]: in-batch keys of the same id that are no positives are no negatives
            either; below 0: of nobody.
        false_negative_threshold: keys that are no positives but whose cosine is larger are left out
            (Huynh et al. 2022, arXiv:2011.11765); the choice has no gradient.

    Returns:
        The loss in float32 (float64 for float64 inputs).

    Raises:
        TypeError: embeddings that are no floating-point tensors.
        ValueError: shapes, dtypes or devices that do not fit, a temperature of 0, another mode,
            options out of range, positives="inside" without group_ids, more than one of decoupled,
            debiased and label_smoothing, or one of them or paired negative_keys with in_batch or
            the options after it; these with negative_keys but not in_batch.
    """
    query, positive_key = check_embeddings(query=query, positive_key=positive_key)
    _check_mode(negative_mode)
    variant = Variant(decoupled, debiased, label_smoothing)
    scale = scale_of(temperature, query)

    if negative_keys is not None and negative_mode == "unpaired":
        query, positive_key, negative_keys = check_embeddings(
            False, query=query, positive_key=positive_key, negative_keys=negative_keys
        )
    candidates = Candidates(positives, false_negative_threshold, group_ids, ignore_ids)
    if candidates.given or (in_batch and negative_keys is not None):
        _check_candidates(in_batch, negative_keys, negative_mode)
        candidates = replace(candidates, negatives=negative_keys)
        candidates.check(variant, query=query)
        losses, _ = _among_the_batch(query, positive_key, scale, candidates)
        return reduce(losses, reduction).to(scale.dtype)
    # In-batch keys never change: where the fused kernels run, they compute the gradients later.
    in_forward = reduction in ("mean", "sum") and torch.is_grad_enabled()
    in_forward = in_forward and (negative_keys is not None or not runs_fused(query))
    if in_forward and negative_mode == "unpaired" and variant == Variant():
        return _in_forward(query, positive_key, negative_keys, temperature, reduction)
    if negative_keys is None:
        lse, positive, _ = similarity_softmax(
            query, positive_key, scale, Pairing(len(query)), normalize=True
        )
        negatives = len(query) - 1
    elif negative_mode == "unpaired":
        positive = scale * (unit(query) * unit(positive_key)).sum(1)
        # No column is a positive: they are all negatives.
        lse, _, _ = similarity_softmax(query, negative_keys, scale, None, normalize=True)
        negatives = len(negative_keys)
    else:
        n, d = query.shape
        if negative_keys.dim() != 3 or negative_keys.shape[::2] != (n, d):
            raise ValueError(
                f"paired negative_keys must have shape [{n}, K, {d}], got "
                f"{list(negative_keys.shape)}"
            )
        positive = scale * (unit(query) * unit(positive_key)).sum(1)
        # Each query has keys of its own: N K logits are no larger than the keys themselves.
        with torch.autocast(query.device.type, enabled=False):
            similarities = torch.einsum("nd,nkd->nk", unit(query), unit(negative_keys))
        lse = (scale * similarities).to(statistics_dtype(query)).logsumexp(1)
        negatives = negative_keys.shape[1]

    def mean_logit() -> Tensor:
        keys = unit(positive_key)
        total = keys.sum(0) if negative_keys is None else keys + unit(negative_keys).sum(-2)
        return scale * (unit(query) * total).sum(1) / (negatives + 1)

    losses = variant.losses(lse, positive, scale, negatives, mean_logit, unit=True)
    return reduce(losses, reduction).to(scale.dtype)


def _check_mode(negative_mode: str) -> None:
    if negative_mode not in ("unpaired", "paired"):
        raise ValueError(f"negative_mode must be 'unpaired' or 'paired', got {negative_mode!r}")


def _check_candidates(in_batch: bool, negative_keys: Tensor | None, negative_mode: str) -> None:
    if negative_keys is None:
        return
    if not in_batch:
        raise ValueError(
            "group_ids, ignore_ids and false_negative_threshold are of in-batch keys: leave "
            "negative_keys out or say in_batch=True"
        )
    if negative_mode == "paired":
        raise ValueError("in_batch=True takes unpaired negative_keys [K, D]")


def _among_the_batch(
    query: Tensor, key: Tensor, scale: Tensor, c: Candidates, group: str | None = None
) -> tuple[Tensor, int]:
    """Losses [N] with the options of groups and hard negatives, and the pairs of all ranks."""
    from sslfast.losses._groups import pair_losses  # who needs none of it loads none

    if c.negatives is not None:
        c = replace(c, negatives=unit(c.negatives))
    return pair_losses(unit(query), unit(key), scale, c, both=False, unit=True, group=group)


def _in_forward(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None,
    temperature: float | Tensor,
    reduction: str,
) -> Tensor:
    """The same sum or mean, its gradients formed with it."""
    if negative_keys is not None:
        return summed_info_nce(
            query, positive_key, unit_rows(negative_keys), temperature, reduction
        )
    scale, of_keys = scale_in_halves(temperature, query)
    rows, keys = (scale * unit(query)).to(query.dtype), unit_rows(positive_key)
    if of_keys is not None:
        keys = keys * of_keys
    n = len(query)
    weight = row_weights(n, reduction, scale)
    targets = torch.arange(n, device=query.device)
    return weighted_linear_cross_entropy(
        rows,
        keys,
        None,
        targets,
        weight,
        ignore_index=-1,
        smoothing=0.0,
        hidden_gradient=rows.requires_grad,
        weight_gradient=keys.requires_grad,
        bias_gradient=False,
    )[0]


def summed_info_nce(
    query: Tensor, key: Tensor, negatives: Tensor, temperature: float | Tensor, reduction: str
) -> Tensor:
    """Mean or sum of the losses of queries among their keys and shared negatives.

    Args:
        query: [N, D], of any length, as key is.
        key: the positive of each query [N, D].
        negatives: unit keys [K, D] of the same dtype, which may change before the backward pass.
        temperature: divides the cosine similarities.
        reduction: "mean" or "sum".
    """
    scale, of_keys = scale_in_halves(temperature, query)
    rows, positive = scaled_pairs(query, key, scale)
    if of_keys is not None:
        positive, negatives = of_keys * positive, negatives * of_keys
    weight = row_weights(len(rows), reduction, positive)
    needed = negatives.requires_grad
    return weighted_info_nce(rows, negatives, positive, weight, needed)[0]


class InfoNCE(nn.Module):
    """InfoNCE (van den Oord et al. 2018); drop-in for info-nce-pytorch's class of this name.

    Without negative keys, and with unpaired ones, memory grows linearly with the batch.

    Args:
        temperature: divides the cosine similarities; not 0.
        reduction: "mean", "sum" or "none".
        negative_mode: "unpaired": negative keys [K, D]; "paired": [N, K, D].
        process_group: ranks whose keys are negatives too, where none are given; None: this one
            alone. Gradients averaged over ranks (DDP, FSDP) are those of one process with the
            global batch; the loss is W / N times the sum over this rank's queries.
        in_batch: as in ``sslfast.functional.info_nce``, as are the next two; over ranks, given
            negative keys are of all.
        positives: see in_batch; "inside" needs group_ids in every call.
        false_negative_threshold: see in_batch.

    Shapes:
        query, positive_key: [N, D]; negative_keys: None for the other rows' keys, or as above.

    Raises:
        TypeError, ValueError: as ``sslfast.functional.info_nce``; with a process_group, given
            negative keys without in_batch, or a reduction other than "mean".
    """

    @checked
    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        reduction: str = "mean",
        negative_mode: str = "unpaired",
        process_group: Any = None,
        *,
        in_batch: bool = False,
        positives: str = "outside",
        false_negative_threshold: float | None = None,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_positives(positives)
        check_reduction(reduction)
        _check_mode(negative_mode)
        if process_group is not None and reduction != "mean":
            raise ValueError(f"over several ranks reduction must be 'mean', got {reduction!r}")
        self.process_group = process_group
        self.temperature = temperature
        self.reduction = reduction
        self.negative_mode = negative_mode
        self.in_batch = in_batch
        self.positives = positives
        self.false_negative_threshold = false_negative_threshold

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"temperature={self.temperature}, reduction={self.reduction!r}, "
            f"negative_mode={self.negative_mode!r}, in_batch={self.in_batch}, "
            f"positives={self.positives!r}, "
            f"false_negative_threshold={self.false_negative_threshold}"
        )

    def forward(
        self,
        query: Tensor,
        positive_key: Tensor,
        negative_keys: Tensor | None = None,
        *,
        group_ids: Tensor | None = None,
        ignore_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of queries [N, D] against their keys [N, D].

        Ids are those of ``sslfast.functional.info_nce``; over ranks they mean the same on all.
        """
        if self.process_group is None:
            return info_nce(
                query,
                positive_key,
                negative_keys,
                self.temperature,
                self.reduction,
                self.negative_mode,
                in_batch=self.in_batch,
                group_ids=group_ids,
                positives=self.positives,
                ignore_ids=ignore_ids,
                false_negative_threshold=self.false_negative_threshold,
            )
        options = self.positives, self.false_negative_threshold, group_ids, ignore_ids
        return self._global(query, positive_key, Candidates(*options, negative_keys))

    def _global(self, query: Tensor, key: Tensor, candidates: Candidates) -> Tensor:
        if candidates.negatives is not None and not self.in_batch:
            raise ValueError(
                "with a process_group the negatives are the keys of all ranks: leave negative_keys "
                "out or say in_batch=True, or gather them yourself and leave the process_group out"
            )
        _check_candidates(self.in_batch, candidates.negatives, self.negative_mode)
        query, key = check_embeddings(query=query, positive_key=key)
        scale = scale_of(self.temperature, query)
        if candidates.given:
            candidates, (query, key) = candidates.check(Variant(), query=query, positive_key=key)
            group = name_of(self.process_group)
            losses, pairs = _among_the_batch(query, key, scale, candidates, group)
            return (world_size(self.process_group) / pairs * losses.sum()).to(scale.dtype)
        q, k = unit_rows(query), unit_rows(key)
        lse, _, positive, factor = global_pair_rows(q, k, scale, self.process_group, both=False)
        losses = info_nce_from_logits(lse, positive, unit=True)
        return (factor * losses.sum()).to(scale.dtype)
