"""SwAV: each crop tells which prototypes the other crops of its image belong to."""

from typing import Any

import torch
from torch import Tensor, nn

from sslfast._arguments import NonNegativeFloat, NonNegativeInt, PositiveFloat, Width
from sslfast.data.batch import Batch
from sslfast.kernels.exchange import gather_rows, name_of
from sslfast.kernels.unit_rows.op import unit_rows
from sslfast.losses import SwaVLoss
from sslfast.losses.memory_bank import MemoryBank
from sslfast.methods.base import Context, Method, Reference
from sslfast.methods.registry import register
from sslfast.methods.views import (
    check_global_views,
    few_samples,
    set_apart,
    spread,
    use_of_prototypes,
)
from sslfast.models import ProjectionHead
from sslfast.models.crops import encode_crops
from sslfast.optim import param_groups

LARGE = 2  # views that give codes


@register("swav")
class SwAV(Method):
    """SwAV (arXiv:2006.09882): cross-entropy with the codes of the other large crops (equation 1).

    Codes are softmaxes of scores with prototypes, shifted so that the batch of all ranks uses all
    prototypes alike (Sinkhorn-Knopp). Prototypes keep length 1. A small batch wants a queue of
    earlier embeddings, which take part in that.

    Args:
        encoder: maps a view [B, C, H, W] to features [B, F].
        prototypes: their number; the paper's thousands are about three times its classes.
        hidden_dim: width of the projector's hidden layer.
        out_dim: width of embeddings and prototypes.
        temperature: of the softmax that learns.
        epsilon: temperature of the codes; lower is sharper.
        sinkhorn_iterations: 0: codes are softmaxes, and a few prototypes take all images.
        freeze_prototypes: epochs in which the prototypes stay as they are.
        queue: earlier embeddings of each large crop, of all ranks; 0: none.
        queue_from: the epoch from which they count.
    """

    recipe = "swav"
    contrastive = True
    smallest_batch = 2
    reference = Reference(
        "Caron et al. 2020, arXiv:2006.09882",
        {
            **{"model": "resnet50", "batch_size": 4096, "epochs": 800, "warmup_epochs": 10},
            **{"optimizer": "LARS", "lr": 4.8, "min_lr": 4.8e-3, "weight_decay": 1e-6},
            **{"prototypes": 3000, "hidden_dim": 2048, "out_dim": 128, "temperature": 0.1},
            **{"epsilon": 0.05, "sinkhorn_iterations": 3, "queue": 0},
        },
    )

    def __init__(
        self,
        encoder: nn.Module,
        *,
        prototypes: Width = 3000,
        hidden_dim: Width = 2048,
        out_dim: Width = 128,
        temperature: PositiveFloat = 0.1,
        epsilon: PositiveFloat = 0.05,
        sinkhorn_iterations: NonNegativeInt = 3,
        freeze_prototypes: NonNegativeFloat = 1,
        queue: NonNegativeInt = 0,
        queue_from: NonNegativeInt = 15,
    ) -> None:
        super().__init__(encoder)
        features = int(encoder.num_features)  # type: ignore[arg-type]
        self.student = nn.Sequential(encoder, ProjectionHead(features, [hidden_dim], out_dim))
        self.prototypes = nn.Parameter(nn.functional.normalize(torch.randn(prototypes, out_dim)))
        self.criterion = SwaVLoss(
            temperature, sinkhorn_iterations, epsilon, sinkhorn_gather_distributed=True
        )
        self.freeze_prototypes, self.queue_from = freeze_prototypes, queue_from
        banks = [MemoryBank((queue, out_dim)) for _ in range(LARGE if queue else 0)]
        self.queues = nn.ModuleList(banks)

    def encode(self, batch: Batch, ctx: Context) -> list[Tensor]:
        """Views V x [B, C, H, W] -> unit embeddings V x [B, out_dim]."""
        return list(map(unit_rows, encode_crops(self.student, batch.views)))

    def loss(self, outputs: list[Tensor], ctx: Context) -> dict[str, Tensor]:
        """The loss, the codes' entropy, how many prototypes they use, spread of embeddings.

        "prototypes" is the exponential of the entropy of the mean code, "kl" the loss beyond the
        codes' entropy.
        """
        large, small = outputs[:LARGE], outputs[LARGE:]
        self.criterion.process_group = ctx.process_group
        held: list[Tensor] | None = None
        if self.queues and ctx.epoch >= self.queue_from:  # each rank brings its share
            held = [bank.bank[ctx.rank :: ctx.world_size] for bank in self.banks()]
        found = self.criterion.parts(large, small, held, weight=self.prototypes)
        for bank, z in zip(self.banks(), large, strict=False):
            z = z.detach()
            if ctx.world_size > 1:
                z, _ = gather_rows(z, name_of(ctx.process_group))
            bank.enqueue(z)
        of_codes = use_of_prototypes(found)
        kl = found.loss.detach() - of_codes["entropy"]
        return {"loss": found.loss, "kl": kl, **of_codes, "spread": spread(large[0])}

    def banks(self) -> list[MemoryBank]:
        """The queue of each large crop, if there are any."""
        return [bank for bank in self.queues if isinstance(bank, MemoryBank)]

    def param_groups(self) -> list[dict[str, Any]]:
        """As of every method, the prototypes apart: they are frozen at first."""
        frozen = {"freeze_until": self.freeze_prototypes}
        return set_apart(param_groups(self), [self.prototypes], **frozen)

    @torch.no_grad()
    def after_step(self, ctx: Context) -> None:
        """Prototypes have length 1 again."""
        self.prototypes.copy_(unit_rows(self.prototypes))

    def check_views(self, recipe: Any) -> None:
        """Refuse recipes that do not begin with two large views."""
        check_global_views(recipe, LARGE)

    def remarks(self, samples: int) -> list[str]:
        """More prototypes than samples, or a queue that holds images twice."""
        said = few_samples(len(self.prototypes), samples, "prototypes")
        length = max((len(bank.bank) for bank in self.banks()), default=0)
        if length > samples:
            said.append(
                f"the queue of {length} embeddings is longer than the {samples} samples: it holds "
                "some of them twice (method_args.queue)"
            )
        return said
