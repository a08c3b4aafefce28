"""The symmetric loss of CLIP; its class has the constructor and forward of open_clip's."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sslfast._arguments import checked
from sslfast.kernels.exchange import check_exchange, check_rank, gather_rows, name_of
from sslfast.kernels.similarity_softmax import Pairing, info_nce_from_logits
from sslfast.kernels.similarity_softmax.op import similarity_softmax
from sslfast.kernels.similarity_softmax.ranks import global_pair_rows
from sslfast.losses._inputs import as_scale, check_embeddings, plain_logits, reduce, with_bias
from sslfast.losses._variants import Candidates, Variant, check_positives

DIRECTIONS = "both", "image_to_text", "text_to_image"


@checked
def clip(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    *,
    reduction: str = "mean",
    direction: str = "both",
    decoupled: bool = False,
    debiased: float = 0.0,
    label_smoothing: float = 0.0,
    group_ids: Tensor | None = None,
    positives: str = "outside",
    ignore_ids: Tensor | None = None,
    false_negative_threshold: float | None = None,
    negatives: Tensor | None = None,
) -> Tensor:
    """The symmetric loss of CLIP (Radford et al. 2021, arXiv:2103.00020, figure 3).

    The mean of two cross-entropies over logits s <image_i, text_j>: of the text of each image, and
    of the image of each text. Features are taken as they are: normalise them first, as CLIP does.
    A tower that needs no gradient (LiT, Zhai et al. 2022, arXiv:2111.07991) costs no products for
    it.

    Args:
        image_features: [N, D].
        text_features: [N, D], row i belonging to image i.
        logit_scale: s, a number or a 0-d tensor, which may need a gradient.
        reduction: "mean", "sum" or "none" (losses [N] of the pairs).
        direction: "both", or one of the two cross-entropies alone: "image_to_text" (the text of
            each image) or "text_to_image".
        decoupled: leave the positive out of the denominator (Yeh et al. 2021, equation 6).
        debiased: tau+, the share of false negatives to correct for, in [0, 1); supposes features
            of unit length (Chuang et al. 2020, equation 8).
        label_smoothing: share of the target spread over all candidates, as F.cross_entropy does.
        group_ids: int64 [N]: pairs of the same id are positives of each other, as are several
            captions of one image; None: every pair is alone.
        positives: "outside": the mean over a row's positives of -log p (SupCon's L_out, Khosla et
            al. 2020, arXiv:2004.11362), "inside": -log of the sum of p (MIL-NCE, Miech et al. 2020,
            arXiv:1912.06430), which needs group_ids.
        ignore_ids: int64 [N]: pairs of the same id that are no positives are no negatives of each
            other either; below 0: of nobody.
        false_negative_threshold: columns that are no positives but more similar than this, by inner
            product, are left out (Huynh et al. 2022, arXiv:2011.11765); the choice has no gradient.
        negatives: hard negatives [K, D] beside the batch, texts that belong to no image: columns of
            every image.

    Returns:
        The loss in float32 (float64 for float64 inputs).

    Raises:
        TypeError: features that are no floating-point tensors.
        ValueError: shapes, dtypes or devices that do not fit, options out of range,
            positives="inside" without group_ids, more than one of decoupled, debiased and
            label_smoothing, or one of them with the options after them; negatives where texts look
            for images alone.
    """
    image_features, text_features = check_embeddings(
        image_features=image_features, text_features=text_features
    )
    _check_direction(direction)
    variant = Variant(decoupled, debiased, label_smoothing)
    candidates = Candidates(positives, false_negative_threshold, group_ids, ignore_ids, negatives)
    if candidates.given:
        candidates, (image_features, text_features) = _check_candidates(
            candidates, image_features, text_features, direction, variant
        )
    rows, columns = _towers(image_features, text_features, direction)
    both = direction == "both"
    if both and negatives is None and columns.requires_grad and not rows.requires_grad:
        rows, columns = columns, rows  # a gradient of the rows alone costs less
    scale = as_scale(logit_scale, rows)
    if candidates.given:
        from sslfast.losses._groups import pair_losses  # who needs none of it loads none

        found, _ = pair_losses(rows, columns, scale, candidates, both=both, unit=False)
        return reduce(found, reduction).to(scale.dtype)
    lse, positive, lse_columns = similarity_softmax(
        rows, columns, scale, Pairing(len(rows)), column_lse=both
    )

    def losses(lse: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Of the rows x among the columns y."""

        def mean_logit() -> Tensor:
            # The mean in float32 makes the product so: no float32 copy of x or y is kept.
            return scale * (x * y.mean(0, dtype=scale.dtype)).sum(1)

        return variant.losses(lse, positive, scale, len(x) - 1, mean_logit, unit=False)

    found = losses(lse, rows, columns)
    if both:
        found = (found + losses(lse_columns, columns, rows)) / 2
    return reduce(found, reduction).to(scale.dtype)


def _towers(image: Tensor, text: Tensor, direction: str) -> tuple[Tensor, Tensor]:
    """Rows and columns: the side that looks for its pair, and the other."""
    return (text, image) if direction == "text_to_image" else (image, text)


def _check_candidates(
    c: Candidates, image: Tensor, text: Tensor, direction: str, variant: Variant
) -> tuple[Candidates, tuple[Tensor, ...]]:
    """Candidates and both towers, all of one dtype."""
    if c.negatives is not None and direction == "text_to_image":
        raise ValueError(
            "negatives are texts: with direction='text_to_image' nothing looks at them"
        )
    return c.check(variant, image_features=image, text_features=text)


def _check_direction(direction: str) -> None:
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {DIRECTIONS}, got {direction!r}")


class ClipLoss(nn.Module):
    """Symmetric contrastive loss of CLIP (Radford et al. 2021); drop-in for open_clip's class.

    Memory grows linearly with the batch; on a CPU at most 16 MiB of logits are kept. Over several
    ranks, negatives are the pairs of all ranks, and gradients averaged over ranks (DDP, FSDP) are
    those of one process with the global batch, whatever ``local_loss`` and ``gather_with_grad``
    say. open_clip's are smaller by world_size without gather_with_grad and local_loss, and miss
    what other ranks' rows contribute with local_loss alone. A tower that needs no gradient (LiT)
    costs no products for it, over ranks neither.

    Args:
        local_loss: return this rank's share (its rows' losses, W / N times their sum); otherwise
            the value returned is the global loss on every rank. Gradients do not depend on it.
        gather_with_grad: accepted for compatibility; gradients are always complete.
        cache_labels: accepted for compatibility; no labels are made.
        rank: this process; must be the rank that torch.distributed knows.
        world_size: ranks to gather from; 1: none.
        use_horovod: not supported.
        process_group: the ranks to gather from; None: all.
        exchange: "gather" brings the features of all ranks here at once; "ring" one rank's at a
            time, for when they do not fit.
        direction: as in ``sslfast.functional.clip``, as are the next two.
        positives: see direction; "inside" needs group_ids in every call.
        false_negative_threshold: see direction.

    Raises:
        ValueError: Horovod, another exchange or direction, or a rank or world_size other than
            torch.distributed's; in forward, shapes, dtypes or devices that do not fit.
        TypeError: in forward, features that are no floating-point tensors.
    """

    @checked
    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        process_group: Any = None,
        exchange: str = "gather",
        *,
        direction: str = "both",
        positives: str = "outside",
        false_negative_threshold: float | None = None,
    ) -> None:
        super().__init__()
        check_exchange(exchange)
        _check_direction(direction)
        check_positives(positives)
        if use_horovod:
            raise ValueError("Horovod is not supported: start the processes with torchrun")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.process_group = process_group
        self.exchange = exchange
        self.direction = direction
        self.positives = positives
        self.false_negative_threshold = false_negative_threshold

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"world_size={self.world_size}, direction={self.direction!r}, "
            f"positives={self.positives!r}, "
            f"false_negative_threshold={self.false_negative_threshold}"
        )

    def get_ground_truth(self, device: torch.device | str, num_logits: int) -> Tensor:
        """Which column is each row's positive, int64 [num_logits]; the loss makes no use of it."""
        labels = torch.arange(num_logits, device=device)
        local = self.world_size > 1 and self.local_loss
        return labels + num_logits * self.rank if local else labels

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the matrix of logits, images by texts, and that of texts by images.

        For evaluation and for losses of your own, such as open_clip's DistillClipLoss: this class's
        loss makes no use of it.

        Returns:
            Both [N, N], or over several ranks, as in open_clip, [M, M] for the M pairs of all, with
            local_loss [N, M] for this rank's rows. Whatever gather_with_grad says, gradients pass
            to the features of all ranks.

        Raises:
            ValueError: with local_loss, ranks of different batch sizes, for get_ground_truth()
                takes them to be the same.
        """
        if self.world_size == 1:
            logits = plain_logits(image_features, text_features, logit_scale, logit_bias)
            return logits, logits.T
        image_features, text_features = check_embeddings(
            image_features=image_features, text_features=text_features
        )
        self._check_rank()
        pairs = torch.stack((image_features, text_features), 1)
        all_pairs, _ = gather_rows(pairs, name_of(self.process_group))
        images, texts = all_pairs.unbind(1)
        if not self.local_loss:
            logits = plain_logits(images, texts, logit_scale, logit_bias)
            return logits, logits.T
        if len(images) != len(pairs) * self.world_size:
            raise ValueError(
                f"get_logits with local_loss takes batches of one size: this rank has {len(pairs)} "
                f"of {len(images)} pairs on {self.world_size} ranks"
            )
        return (
            plain_logits(image_features, texts, logit_scale, logit_bias),
            plain_logits(text_features, images, logit_scale, logit_bias),
        )

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
        *,
        group_ids: Tensor | None = None,
        ignore_ids: Tensor | None = None,
        negatives: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss of features [N, D], as a dict {"contrastive_loss": ...} where asked.

        A bias common to all logits cancels in the softmax; its gradient is zero. Ids and negatives
        are those of ``sslfast.functional.clip``; over ranks, ids mean the same on all of them,
        negatives are of all, and every rank gives the same options, with one negative at least.
        """
        given = group_ids, ignore_ids, negatives
        if self.world_size > 1:
            loss = self._global(image_features, text_features, logit_scale, *given)
        else:
            loss = clip(
                image_features,
                text_features,
                logit_scale,
                direction=self.direction,
                positives=self.positives,
                false_negative_threshold=self.false_negative_threshold,
                group_ids=group_ids,
                ignore_ids=ignore_ids,
                negatives=negatives,
            )
        loss = with_bias(loss, logit_bias)
        return {"contrastive_loss": loss} if output_dict else loss

    def _global(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: float | Tensor,
        *given: Tensor | None,
    ) -> Tensor:
        image, text = check_embeddings(image_features=image, text_features=text)
        group = self.process_group
        self._check_rank()
        candidates = Candidates(self.positives, self.false_negative_threshold, *given)
        if candidates.given:
            candidates, (image, text) = _check_candidates(
                candidates, image, text, self.direction, Variant()
            )
        scale = as_scale(logit_scale, image)
        both = self.direction == "both"
        towers = _towers(image, text, self.direction)
        factor: float | Tensor
        if candidates.given:
            from sslfast.losses._groups import pair_losses

            rows, pairs = pair_losses(
                *towers, scale, candidates, both=both, unit=False, group=name_of(group)
            )
            factor = self.world_size / pairs
        else:
            lse, lse_other, positive, factor = global_pair_rows(
                *towers, scale, group, both, how=self.exchange
            )
            rows = info_nce_from_logits(lse, positive, unit=False)
            if both:
                rows = (rows + info_nce_from_logits(lse_other, positive, unit=False)) / 2
        return self._of_all_ranks((factor * rows.sum()).to(scale.dtype))

    def _check_rank(self) -> None:
        """Raise ValueError unless torch.distributed knows this process by the loss's numbers."""
        check_rank("ClipLoss", self.rank, self.world_size, self.process_group)

    def _of_all_ranks(self, local: Tensor) -> Tensor:
        """The global loss, with the gradient of this rank's share; ``local_loss``: the share."""
        if self.local_loss:
            return local
        total = local.detach().clone()
        dist.all_reduce(total, group=self.process_group)
        return local + (total / self.world_size - local.detach())
