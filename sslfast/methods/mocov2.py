"""MoCo v2: a view attracts a teacher's key of the other, and repels a queue of earlier keys."""

from torch import Tensor, nn

from sslfast._arguments import PositiveFloat, PositiveInt, Probability, Width
from sslfast.data.batch import Batch
from sslfast.ema import EMATeacher
from sslfast.losses import NTXentLoss
from sslfast.methods.base import Context, Method, Reference
from sslfast.methods.registry import register
from sslfast.methods.views import similarity, spread
from sslfast.models import ProjectionHead


@register("mocov2")
class MoCoV2(Method):
    """MoCo v2 (arXiv:2003.04297): InfoNCE of queries, keys and a queue (1911.05722, equation 1).

    The queue takes the keys of all ranks after each loss, is saved with the run, and starts as
    random directions: the first queue / batch steps contrast with noise. Batch norm over all ranks
    (``sync_batch_norm``) takes the place of the paper's shuffling: neither lets a network tell from
    the statistics of a rank's batch which key is its own.

    Args:
        encoder: maps a view [B, C, H, W] to features [B, F].
        queue: how many keys are kept; 65,536 in the paper. Any batch size goes with it.
        temperature: of the softmax.
        momentum: of the teacher.
        hidden_dim: width of the head's hidden layer; None: F, as in the published code.
        out_dim: width of the embeddings.
    """

    recipe = "moco"
    smallest_batch = 2
    reference = Reference(
        "Chen et al. 2020, arXiv:2003.04297",
        {
            **{"model": "resnet50", "batch_size": 256, "epochs": 200, "optimizer": "SGD"},
            **{"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4, "temperature": 0.2},
            **{"queue": 65536, "teacher momentum": 0.999, "hidden_dim": 2048, "out_dim": 128},
        },
    )

    def __init__(
        self,
        encoder: nn.Module,
        *,
        queue: PositiveInt = 65536,
        temperature: PositiveFloat = 0.2,
        momentum: Probability = 0.999,
        hidden_dim: Width | None = None,
        out_dim: Width = 128,
    ) -> None:
        super().__init__(encoder)
        features = int(encoder.num_features)  # type: ignore[arg-type]
        head = ProjectionHead(features, [hidden_dim or features], out_dim, batch_norm=False)
        self.queue = queue
        self.student = nn.Sequential(encoder, head)
        self.teacher = EMATeacher(self.student, momentum)
        self.criterion = NTXentLoss(temperature, (queue, out_dim), gather_distributed=True)

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        """Views 2 x [B, C, H, W] -> queries and the teacher's keys, 2 x [B, out_dim]."""
        first, second = batch.views
        self.teacher.train()  # batch norm by its own batches
        return self.student(first), self.teacher(second)

    def loss(self, outputs: tuple[Tensor, Tensor], ctx: Context) -> dict[str, Tensor]:
        """InfoNCE, the similarity of queries and their keys, and how far the keys spread."""
        query, key = outputs
        loss = self.criterion(query, key)
        return {"loss": loss, "positive_similarity": similarity(query, key), "spread": spread(key)}

    def teachers(self) -> list[EMATeacher]:
        """The one that makes the keys."""
        return [self.teacher]

    def remarks(self, samples: int) -> list[str]:
        """A queue that holds keys of the same image several times."""
        if self.queue <= samples:
            return []
        return [
            f"the queue of {self.queue} keys is longer than the {samples} samples: it holds keys "
            "of the query's own image, which repel it (method_args.queue)"
        ]
