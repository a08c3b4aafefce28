"""NT-Xent, the loss of SimCLR; its class has the constructor and forward of lightly's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslfast._arguments import checked
from sslfast.kernels.exchange import check_exchange, gather_rows, name_of, world_size
from sslfast.kernels.similarity_softmax import Pairing, info_nce_from_logits
from sslfast.kernels.similarity_softmax.op import similarity_softmax
from sslfast.kernels.similarity_softmax.ranks import global_ntxent_rows
from sslfast.kernels.unit_rows.op import unit_rows, wide_unit_rows
from sslfast.losses._inputs import check_embeddings, check_temperature, reduce, scale_of
from sslfast.losses._variants import Candidates, Variant, check_positives
from sslfast.losses.infonce import summed_info_nce
from sslfast.losses.memory_bank import MemoryBank


@checked
def ntxent(
    out0: Tensor,
    out1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    decoupled: bool = False,
    debiased: float = 0.0,
    label_smoothing: float = 0.0,
    group_ids: Tensor | None = None,
    positives: str = "outside",
    ignore_ids: Tensor | None = None,
    false_negative_threshold: float | None = None,
) -> Tensor:
    """NT-Xent, the loss of SimCLR (Chen et al. 2020, arXiv:2002.05709, equation 1).

    With z the 2N embeddings [out0; out1], divided by their norms, and p(i) the other view of i:
    l_i = -log(exp(<z_i, z_p(i)> / t) / sum_{k != i} exp(<z_i, z_k> / t)).

    Args:
        out0: embeddings of the first views [N, D].
        out1: embeddings of the second views [N, D], of the same dtype and device.
        temperature: a number, negative ones allowed, or a 0-d tensor, which may need a gradient.
        normalize: divide embeddings by their Euclidean norm first.
        reduction: "mean", "sum" or "none" (losses [2N], those of out0 first).
        decoupled: leave the positive out of the denominator (Yeh et al. 2021, equation 6).
        debiased: tau+, the share of false negatives to correct for, in [0, 1); supposes unit
            length, as normalize gives (Chuang et al. 2020, equation 8).
        label_smoothing: share of the target spread over all candidates, as F.cross_entropy does.
        group_ids: int64 [N]: the views of samples of the same id are positives of each other.
        positives: "outside": the mean over a row's positives of -log p (SupCon's L_out, Khosla et
            al. 2020, arXiv:2004.11362), "inside": -log of the sum of p (MIL-NCE, Miech et al. 2020,
            arXiv:1912.06430), which needs group_ids.
        ignore_ids: int64 [N]: views of samples of the same id that are no positives are no
            negatives either; below 0: of nobody.
        false_negative_threshold: columns that are no positives but more similar than this, by inner
            product, are left out (Huynh et al. 2022, arXiv:2011.11765); the choice has no gradient.

    Returns:
        The loss in float32 (float64 for float64 inputs).

    Raises:
        TypeError: embeddings that are no floating-point tensors.
        ValueError: shapes, dtypes or devices that do not fit, a temperature of 0, options out of
            range, positives="inside" without group_ids, more than one of decoupled, debiased and
            label_smoothing, or one of them with the options after them.
    """
    out0, out1 = check_embeddings(out0=out0, out1=out1)
    variant = Variant(decoupled, debiased, label_smoothing)
    candidates = Candidates(positives, false_negative_threshold, group_ids, ignore_ids)
    z = torch.cat((out0, out1))
    scale = scale_of(temperature, z)
    if candidates.given:
        from sslfast.losses._groups import view_losses  # who needs none of it loads none

        candidates.check(variant, out0=out0)
        rows = unit_rows(z) if normalize else z
        found, _ = view_losses(rows, scale, candidates, unit=normalize)
        return reduce(found, reduction).to(scale.dtype)
    lse, positive, _ = similarity_softmax(
        z,
        None,
        scale,
        Pairing(len(z), shift=len(out0), leave_out_self=True),
        normalize=normalize,
    )

    def mean_logit() -> Tensor:
        unit = wide_unit_rows(z) if normalize else z.to(scale.dtype)
        return scale * (unit * (unit.sum(0) - unit)).sum(1) / (len(z) - 1)

    losses = variant.losses(lse, positive, scale, len(z) - 2, mean_logit, normalize)
    return reduce(losses, reduction).to(scale.dtype)


class NTXentLoss(nn.Module):
    """NT-Xent (SimCLR, Chen et al. 2020, equation 1); drop-in for lightly's class of this name.

    Memory grows linearly with N; on a CPU at most 16 MiB of logits are kept. With a memory bank,
    negatives are the bank's entries instead of the batch's, as in MoCo (He et al. 2020, equation
    1); the bank takes up ``out1`` after each call whose ``out0`` needs a gradient.

    Args:
        temperature: divides the cosine similarities; not 0, negative values are allowed.
        memory_bank_size: (number of embeddings, their dimension); 0 or (0, dimension) for none.
        gather_distributed: negatives are the embeddings of all ranks; with a bank, all ranks'
            ``out1`` go into it. Averaging gradients over ranks (DDP, FSDP) gives that of one
            process with the global batch; the loss is W / M times the sum over this rank's rows.
            Without a process group that is initialised, there is one rank and nothing to gather.
        process_group: the ranks to gather from; None: all.
        exchange: "gather" brings the embeddings of all ranks here at once; "ring" one rank's at a
            time, for when they do not fit; with ids or a threshold they come at once.
        positives: as in ``sslfast.functional.ntxent``, as is the next; "inside" needs group_ids in
            every call.
        false_negative_threshold: see positives.

    Shapes:
        out0, out1: [N, D] of one floating dtype and device, normalised or not. Returns the mean
        over the 2N rows (N with a bank), in float32 (float64 for float64 inputs).

    Raises:
        ValueError: a temperature below 1e-8 in magnitude, another exchange, gather_distributed in
            a torch without torch.distributed, shapes, dtypes or devices that do not fit; ids, a
            threshold or positives="inside" with a memory bank, or "inside" without group_ids.
        TypeError: embeddings that are no floating-point tensors.

    Differences from lightly 1.6: the bank is saved with the state, wraps around where lightly
    drops the end of a batch, and embeddings of zeros get no gradient, not 1e12 or NaN.
    """

    @checked
    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        process_group: Any = None,
        exchange: str = "gather",
        *,
        positives: str = "outside",
        false_negative_threshold: float | None = None,
    ) -> None:
        super().__init__()
        check_exchange(exchange, gather_distributed)
        check_temperature(temperature)
        check_positives(positives)
        self.positives = positives
        self.false_negative_threshold = false_negative_threshold
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.process_group = process_group
        self.exchange = exchange
        size = (memory_bank_size,) if isinstance(memory_bank_size, int) else memory_bank_size
        none = len(size) in (1, 2) and size[0] == 0 <= size[-1]
        self.memory_bank = None if none else MemoryBank(tuple(size))
        if not none and (positives != "outside" or false_negative_threshold is not None):
            raise ValueError(_NO_IDS)

    @property
    def _gathers(self) -> bool:
        return self.gather_distributed and world_size(self.process_group) > 1

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"temperature={self.temperature}, gather_distributed={self.gather_distributed}, "
            f"positives={self.positives!r}, "
            f"false_negative_threshold={self.false_negative_threshold}"
        )

    def forward(
        self,
        out0: Tensor,
        out1: Tensor,
        *,
        group_ids: Tensor | None = None,
        ignore_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss of the embeddings [N, D] of two views.

        Ids are those of ``sslfast.functional.ntxent``; over ranks they mean the same on all.
        """
        if self.memory_bank is None and not self._gathers:
            return ntxent(
                out0,
                out1,
                self.temperature,
                group_ids=group_ids,
                positives=self.positives,
                ignore_ids=ignore_ids,
                false_negative_threshold=self.false_negative_threshold,
            )
        candidates = Candidates(
            self.positives, self.false_negative_threshold, group_ids, ignore_ids
        )
        out0, out1 = check_embeddings(out0=out0, out1=out1)
        if self.memory_bank is None:
            return self._global(out0, out1, candidates)
        if candidates.given:
            raise ValueError(_NO_IDS)
        bank = self.memory_bank.bank
        if bank.shape[1] != out0.shape[1]:
            raise ValueError(
                f"embeddings have dimension {out0.shape[1]}, the memory bank {bank.shape[1]}"
            )
        loss = _moco(out0, out1, bank, self.temperature)
        if out0.requires_grad:
            keys = wide_unit_rows(out1.detach())
            if self._gathers:
                keys, _ = gather_rows(keys, name_of(self.process_group))
            self.memory_bank.enqueue(keys)
        return loss

    def _global(self, out0: Tensor, out1: Tensor, candidates: Candidates) -> Tensor:
        scale = scale_of(self.temperature, out0)
        z = unit_rows(torch.cat((out0, out1)))
        if candidates.given:
            from sslfast.losses._groups import view_losses

            candidates.check(Variant(), out0=out0)
            group = name_of(self.process_group)
            found, rows = view_losses(z, scale, candidates, unit=True, group=group)
            return (world_size(self.process_group) / rows * found.sum()).to(scale.dtype)
        lse, positive, factor = global_ntxent_rows(z, scale, self.process_group, self.exchange)
        losses = info_nce_from_logits(lse, positive, unit=True)
        return (factor * losses.sum()).to(scale.dtype)


_NO_IDS = (
    "with a memory bank every entry is a negative: leave out positives, group_ids, ignore_ids and "
    "false_negative_threshold, or the bank"
)


def _moco(query: Tensor, key: Tensor, bank: Tensor, temperature: float | Tensor) -> Tensor:
    """InfoNCE of queries against their keys and the bank's unit entries."""
    # The gradient is formed at once: nothing of the bank is kept, which goes on changing. A bank of
    # the queries' dtype (loss.to(dtype)) is used as it is, another one is copied.
    return summed_info_nce(query, key, bank.to(query.dtype), temperature, "mean")
