"""DINO: crops learn what a moving average of the network makes of the whole image."""

from typing import Any, Literal

from torch import Tensor, nn

from sslfast._arguments import Depth, NonNegativeFloat, PositiveFloat, Probability, Width
from sslfast.data.batch import Batch
from sslfast.ema import EMATeacher
from sslfast.losses import DINOLoss
from sslfast.methods import views
from sslfast.methods.base import Context, Method, Progress, Reference
from sslfast.methods.registry import register
from sslfast.models import PrototypeHead
from sslfast.models.crops import encode_crops
from sslfast.optim import param_groups

Outputs = tuple[Any, ...]  # of the teacher and the student, each a list of views
GLOBAL = 2  # views that the teacher sees


@register("dino")
class DINO(Method):
    """DINO (arXiv:2104.14294): cross-entropy between softmaxes over prototypes (equation 3).

    The student sees all crops, the teacher the two global ones; each learns from the teacher's
    other one. The teacher's scores are centred, and sharpened by a temperature that rises over the
    first epochs. Its encoder is the one that is kept.

    Args:
        encoder: maps a view [B, C, H, W] to features [B, F].
        out_dim: prototypes. A small data set wants fewer than 65,536: no more than it has images.
        hidden_dim: width of the head's hidden layers.
        bottleneck_dim: width of the head's unit vectors.
        head_layers: linear layers of the head before the prototypes.
        head_batch_norm: batch norm in the head, for convolutional encoders.
        momentum: of the teacher at the start; it rises to 1 by a cosine. A short run wants less.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's, after its warm-up.
        warmup_teacher_temperature: of the first of ``warmup_temperature_epochs``.
        centering: of the teacher's scores: "mean", a moving mean, or "sinkhorn".
        center_momentum: of the mean; 1: none.
        freeze_prototypes: epochs in which prototypes stay as they are.
    """

    recipe = "dino"
    reference = Reference(
        "Caron et al. 2021, arXiv:2104.14294",
        {
            **{"model": "vit_small", "batch_size": 1024, "epochs": 800, "warmup_epochs": 10},
            **{"model_args": {"dynamic_img_size": True, "drop_path_rate": 0.1}},
            **{"optimizer": "AdamW", "lr": 2e-3, "min_lr": 1e-6},  # lr: 5e-4 * 1024 / 256
            **{"weight_decay": 0.04, "weight_decay_end": 0.4, "out_dim": 65536},
            **{"momentum": 0.996, "student_temperature": 0.1, "teacher_temperature": 0.07},
        },
    )

    def __init__(
        self,
        encoder: nn.Module,
        *,
        out_dim: Width = 65536,
        hidden_dim: Width = 2048,
        bottleneck_dim: Width = 256,
        head_layers: Depth = 3,
        head_batch_norm: bool = False,
        momentum: Probability = 0.996,
        student_temperature: PositiveFloat = 0.1,
        teacher_temperature: PositiveFloat = 0.07,
        warmup_teacher_temperature: PositiveFloat = 0.04,
        warmup_temperature_epochs: NonNegativeFloat = 30,
        centering: Literal["mean", "sinkhorn"] = "mean",
        center_momentum: Probability = 0.9,
        freeze_prototypes: NonNegativeFloat = 1,
    ) -> None:
        super().__init__(encoder)
        self.head = PrototypeHead(
            int(encoder.num_features), hidden_dim, bottleneck_dim, out_dim,  # type: ignore[arg-type]
            num_layers=head_layers, batch_norm=head_batch_norm,
        )  # fmt: skip
        self.student = views.Network(encoder, self.head)
        self.momentum, self.teacher = momentum, EMATeacher(self.student, momentum)
        self.criterion = DINOLoss(
            out_dim, warmup_teacher_temperature, teacher_temperature,
            int(warmup_temperature_epochs), student_temperature, center_momentum, centering,
        )  # fmt: skip
        self.freeze_prototypes = freeze_prototypes

    def encode(self, batch: Batch, ctx: Context) -> Outputs:
        """Views V x [B, C, H, W] -> unit vectors of the teacher, 2 x [B, D], and of the student."""
        views.use_batch_statistics(self.teacher)
        teacher = encode_crops(self.teacher, batch.views[:GLOBAL])
        return teacher, encode_crops(self.student, batch.views)

    def loss(self, outputs: Outputs, ctx: Context) -> dict[str, Tensor]:
        """The loss, the teacher's entropy, which "kl" is beyond, its spread and prototypes in use.

        The latter are the exponential of its mean softmax's entropy.
        """
        teacher, student = outputs
        self.criterion.process_group = ctx.process_group
        targets = views.network_of(self.teacher).head.prototypes().detach()
        found = self.criterion.parts(
            teacher, student, ctx.schedules.get("teacher_temperature"),
            weight=self.head.prototypes(), teacher_weight=targets,
        )  # fmt: skip
        of_teacher = views.use_of_prototypes(found)
        kl = found.loss.detach() - of_teacher["entropy"]
        return {"loss": found.loss, "kl": kl, **of_teacher, "spread": views.spread(teacher[0])}

    def schedules(self, progress: Progress) -> dict[str, float]:
        """The teacher's momentum and temperature."""
        temperature = self.criterion.temperature_in(int(progress.epoch))
        momentum = views.cosine_momentum(self.momentum, progress)
        return {"momentum": momentum, "teacher_temperature": temperature}

    def param_groups(self) -> list[dict[str, Any]]:
        """As of every method, the prototypes apart: they are frozen at first."""
        heads = [m for m in self.student.modules() if isinstance(m, PrototypeHead)]
        frozen = {"freeze_until": self.freeze_prototypes}
        return views.set_apart(param_groups(self), [head.weight for head in heads], **frozen)

    def teachers(self) -> list[EMATeacher]:
        """The one that makes the targets."""
        return [self.teacher]

    def exported(self) -> nn.Module:
        """The teacher's encoder, which the paper evaluates."""
        return views.network_of(self.teacher).encoder

    def check_views(self, recipe: Any) -> None:
        """Refuse recipes that do not begin with two global views."""
        views.check_global_views(recipe, GLOBAL)

    def remarks(self, samples: int) -> list[str]:
        """More prototypes than samples."""
        return views.few_samples(len(self.head.weight), samples)
