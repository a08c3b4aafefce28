"""VSSL: Gaussians of two views explain each other, without a decoder."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._arguments import NonNegativeFloat, PositiveFloat, Probability, Width
from sslfast.data.batch import Batch
from sslfast.ema import EMATeacher
from sslfast.methods.base import Context, Method, Progress, Reference
from sslfast.methods.registry import register
from sslfast.methods.views import cosine_momentum, spread
from sslfast.models import ProjectionHead, VarianceHead


@register("vssl")
class VSSL(Method):
    """Variational self-supervised learning (arXiv:2504.04318), in our reading.

    The student makes a posterior q of each view, an EMA teacher a prior p: diagonal Gaussians in a
    latent space. Of both pairings of two views, the loss is minus a lower bound on the evidence:
    beta KL(q(z|x2) || p(z|x1)) - log N(mean of p(z|x1); q(z|x2)), both in closed form, as means
    over the latent dimensions. The second term takes the place of a decoder's: the other view is
    denoised in the latent space, and the student's variance becomes the error that it expects. It
    is kept as the head "uncertainty".

    The paper's formulas and settings were not to be had beyond its introduction. Ours are the form
    of the likelihood; the "cosine" form, in which means lie on the sphere of radius sqrt(D), so
    that squared differences are 2 - 2 cos; a predictor before the student's mean, without which
    both networks may agree on a constant; and BYOL's heads and momentum.

    Batch norm sees both views together, the teacher's too.

    Args:
        encoder: maps a view [B, C, H, W] to features [B, F].
        form: "cosine", or "gaussian" for means that may lie anywhere.
        beta: weight of the KL divergence.
        hidden_dim: width of the heads' hidden layer.
        out_dim: D, the latent dimensions.
        floor: of the variances, whose start is about 0.7.
        momentum: of the teacher at the start; it rises to 1 by a cosine.
    """

    recipe = "byol"
    smallest_batch = 2  # of batch norm
    reference = Reference(
        "Yavuz and Yanikoglu 2025, arXiv:2504.04318",
        {  # BYOL's of 300 epochs: those of the paper are not known
            **{"model": "resnet50", "batch_size": 4096, "epochs": 300, "optimizer": "LARS"},
            **{"lr": 4.8, "weight_decay": 1e-6, "warmup_epochs": 10, "momentum": 0.99},
        },
    )

    def __init__(
        self,
        encoder: nn.Module,
        *,
        form: Literal["cosine", "gaussian"] = "cosine",
        beta: NonNegativeFloat = 1.0,
        hidden_dim: Width = 4096,
        out_dim: Width = 256,
        floor: PositiveFloat = 1e-2,
        momentum: Probability = 0.99,
    ) -> None:
        super().__init__(encoder)
        self.form, self.beta, self.momentum = form, beta, momentum
        features = int(encoder.num_features)  # type: ignore[arg-type]
        self.mean = ProjectionHead(features, [hidden_dim], out_dim, last_bias=False)
        self.variance = VarianceHead(features, [hidden_dim], out_dim, floor=floor)
        self.predictor = ProjectionHead(out_dim, [hidden_dim], out_dim, last_bias=False)
        followed = {"encoder": encoder, "mean": self.mean, "variance": self.variance}
        self.teacher = EMATeacher(nn.ModuleDict(followed), momentum)

    def encode(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean and variance of the student's posteriors, then of the priors: each [B, 2, D]."""
        first, second = batch.views
        images = torch.cat([first, second])
        features = self.encoder(images)
        posterior = self.predictor(self.mean(features)), self.variance(features)
        with torch.no_grad():
            teacher = self.teacher.train().module
            features = teacher["encoder"](images)  # type: ignore[index]
            prior = teacher["mean"](features), teacher["variance"](features)  # type: ignore[index]
        mean, variance, target, expected = (
            x.unflatten(0, (2, -1)).transpose(0, 1) for x in (*posterior, *prior)
        )
        return mean, variance, target, expected

    def loss(self, outputs: tuple[Tensor, ...], ctx: Context) -> dict[str, Tensor]:
        """Minus the bound, in nats a dimension (but for the constant of the Gaussian).

        Beside it "kl", "log_sigma" (the mean logarithm of the student's deviations: that of the
        floor where the variance collapsed), and "similarity", the mean cosine of
        the means, and "spread", how far the prior's lie apart.
        """
        mean, variance, *prior = (x if x.dtype == torch.float64 else x.float() for x in outputs)
        target, expected = (x.flip(1) for x in prior)  # each posterior meets the other view's prior
        similarity = F.cosine_similarity(mean.detach(), target, -1).mean()
        if self.form == "cosine":
            radius = math.sqrt(mean.shape[-1])
            mean, target = (radius * F.normalize(x, dim=-1) for x in (mean, target))
        error = (mean - target).square()
        kl = 0.5 * ((expected / variance).log() + (variance + error) / expected - 1).mean()
        likelihood = -0.5 * (variance.log() + error / variance).mean()
        return {
            "loss": self.beta * kl - likelihood,
            "kl": kl.detach(),
            "log_sigma": 0.5 * variance.detach().log().mean(),
            "similarity": similarity,
            "spread": spread(target.flatten(0, 1)),
        }

    def schedules(self, progress: Progress) -> dict[str, float]:
        """The teacher's momentum: from its start to 1 by a cosine."""
        return {"momentum": cosine_momentum(self.momentum, progress)}

    def teachers(self) -> list[EMATeacher]:
        """The one that makes the priors."""
        return [self.teacher]

    def heads(self) -> dict[str, nn.Module]:
        """The student's variances, as "uncertainty"."""
        return {"uncertainty": self.variance}
