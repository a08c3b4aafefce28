"""SIGReg, and the loss of LeJEPA; its classes have the constructors and forward of lightly's."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast._arguments import PositiveFloat, PositiveInt, Probability, Range, Seed, checked
from sslfast.kernels.dtypes import FLOATS, accumulation_dtype
from sslfast.kernels.exchange import check_exchange, name_of, world_size
from sslfast.kernels.philox.op import random_bits
from sslfast.kernels.sigreg.op import sigreg as statistic

Knots = Annotated[int, Range(2, 1024)]
STREAM = 0x53494700  # of Philox: no other operation draws from it


def random_directions(
    count: PositiveInt,
    dim: PositiveInt,
    *,
    seed: int,
    step: int | Tensor,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Directions [count, dim], uniform on the unit sphere: the same on every rank and device.

    They are normal numbers, by Box and Muller from Philox (kernels/philox), of unit length.

    Args:
        count: how many.
        dim: numbers in each.
        seed: of the run.
        step: they are drawn anew for each; an integer, or a tensor of one on the device, which is
            not read on the host.
        device: where they are wanted; None: that of ``step``.
        dtype: float32 or float64.
    """
    if device is None:
        device = step.device if isinstance(step, Tensor) else "cpu"
    at = torch.as_tensor(step, dtype=torch.int64, device=device).reshape(())
    pairs = (dim + 1) // 2
    words = random_bits(torch.arange(count, device=device), at, seed, STREAM, 2 * pairs)
    # In the middle of 2^24 stretches of (0, 1): all of them are floats, and none is 0.
    uniform = ((words >> 8).to(dtype) + 0.5) * 2.0**-24
    first, second = uniform.view(count, pairs, 2).unbind(2)
    radius, angle = (-2 * first.log()).sqrt_(), second * (2 * torch.pi)
    normal = torch.cat((radius * angle.cos(), radius * angle.sin()), 1)[:, :dim]
    return F.normalize(normal, dim=1)


@checked
def sigreg(
    z: Tensor, directions: Tensor, *, knots: Knots = 17, t_max: PositiveFloat = 3.0
) -> Tensor:
    """How far features are from a standard normal distribution, along some directions.

    Sketched isotropic Gaussian regularization (Balestriero and LeCun 2025, arXiv:2511.08544). For
    the projections p_i = <z_i, a> of N rows on a direction a, the statistic of Epps and Pulley is
    N times the integral over t from -t_max to t_max of
    |mean_i exp(i t p_i) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), by the trapezoid rule. The loss is its
    mean over directions, and over views, each of which is a sample of its own. Features are not
    standardized: their means go to 0 and their variances to 1.

    Args:
        z: features [..., N, D]; the leading dimensions are views.
        directions: [M, D], of unit length. They get no gradient.
        knots: nodes t from 0 to t_max; the other half has the same values.
        t_max: the largest t.

    Returns:
        The loss, 0-d, in float32 (float64 for float64 features).

    Raises:
        TypeError: features or directions that are no floating-point tensors.
        ValueError: shapes or devices that do not fit, no features, fewer than 2 knots, a t_max that
            is not positive.
    """
    return _statistic(z, directions, knots, t_max, None)[0]


def _statistic(
    z: Tensor, directions: Tensor, knots: int, t_max: float, group: str | None
) -> tuple[Tensor, Tensor]:
    """The loss, and the rows of all ranks, 0-d, on the host."""
    _check_features("z", z)
    _check_features("directions", directions)
    if directions.dim() != 2 or directions.shape[1] != z.shape[-1]:
        raise ValueError(
            f"directions must have shape [M, {z.shape[-1]}], for features of as many numbers, got "
            f"{list(directions.shape)}"
        )
    if directions.device != z.device:
        raise ValueError(f"z is on {z.device}, but directions are on {directions.device}")
    views = z.reshape(-1, *z.shape[-2:])
    along = directions.detach().to(accumulation_dtype(z.dtype))
    return statistic(views, along, t_max, knots, group)


def _check_features(name: str, z: Tensor) -> None:
    if not isinstance(z, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(z).__name__}")
    if z.dtype not in FLOATS:
        raise TypeError(f"{name} must hold floating-point numbers, got {z.dtype}")
    if z.dim() < 2:
        raise ValueError(f"{name} must have shape [..., N, D], got {list(z.shape)}")
    if z.numel() == 0:
        raise ValueError(f"{name} is empty: shape {list(z.shape)}")


class SIGReg(nn.Module):
    """Sketched isotropic Gaussian regularization; drop-in for lightly's class of this name.

    See ``sslfast.functional.sigreg`` for the formula.

    Args:
        knots: nodes t from 0 to t_max at which characteristic functions are compared.
        t_max: the largest t.
        num_vectors: how many directions are drawn.
        gather_distributed: take the features of all ranks together, which may have different
            numbers of rows. All return the loss of one process with the global batch, and averaging
            gradients over ranks (DDP, FSDP) gives its gradient.
        seed: of the directions; the same on all ranks.
        process_group: the ranks to take them over; None: all.

    Attributes:
        draws: how often directions were drawn, int64, 0-d, saved with the module: the next ones
            depend on it and on the seed alone, so that they are the same on every rank.

    Shapes:
        proj: [..., N, D] of any floating dtype; leading dimensions are views, and the loss is the
        mean over them. Returns the loss, 0-d, in float32 (float64 for float64 features).

    Raises:
        ValueError: fewer than 2 knots, a t_max that is not positive, no directions,
            gather_distributed in a torch without torch.distributed, shapes or devices that do not
            fit, no features.
        TypeError: features that are no floating-point tensors.

    Differences from lightly 1.6: directions come from ``seed`` and ``draws``, and not from torch's
    generator; 16-bit features give a loss in float32 and are projected in float32; and rows are
    counted in integers, which in bfloat16 go astray beyond 256.
    """

    draws: Tensor

    @checked
    def __init__(
        self,
        *,
        knots: Knots = 17,
        t_max: PositiveFloat = 3.0,
        num_vectors: PositiveInt = 1024,
        gather_distributed: bool = False,
        seed: Seed = 0,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        check_exchange("gather", gather_distributed)
        self.knots = knots
        self.t_max = t_max
        self.num_vectors = num_vectors
        self.gather_distributed = gather_distributed
        self.seed = seed
        self.process_group = process_group
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        """Show the settings."""
        return (
            f"knots={self.knots}, t_max={self.t_max}, num_vectors={self.num_vectors}, "
            f"gather_distributed={self.gather_distributed}, seed={self.seed}"
        )

    def forward(self, proj: Tensor, directions: Tensor | None = None) -> Tensor:
        """Return the loss of features [..., N, D].

        Args:
            proj: the features.
            directions: [M, D], of unit length; None: new ones.
        """
        return self.with_rows(proj, directions)[0]

    def with_rows(self, proj: Tensor, directions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the loss, and the number of rows N of all ranks, 0-d, on the host."""
        _check_features("proj", proj)
        if directions is None:
            dtype = accumulation_dtype(proj.dtype)
            directions = random_directions(
                self.num_vectors, proj.shape[-1],
                seed=self.seed, step=self.draws, device=proj.device, dtype=dtype,
            )  # fmt: skip
            self.draws += 1
        group = None
        if self.gather_distributed and world_size(self.process_group) > 1:
            group = name_of(self.process_group)
        return _statistic(proj, directions, self.knots, self.t_max, group)


class LeJEPALoss(nn.Module):
    """Loss of LeJEPA (Balestriero and LeCun 2025); drop-in for lightly's class of this name.

    L = (1 - lambda) I + lambda SIGReg, with I the mean squared difference of every view's features
    from the mean of those of the global views.

    Args:
        lambda_param: weight of SIGReg, in [0, 1].
        gather_distributed: SIGReg of the features of all ranks, which may have different numbers of
            rows. The invariance is W n / M times the mean over this rank's rows, for n rows of M on
            W ranks, so that losses and gradients averaged over ranks (DDP, FSDP) are those of one
            process with the global batch.
        sigreg_knots: see ``SIGReg``, as all that follow.
        sigreg_t_max: see there.
        sigreg_num_vectors: see there.
        seed: see there.
        process_group: see there.

    Shapes:
        local_proj: [V_local, N, D], or None: all views are global.
        global_proj: [V_global, N, D]. Returns the loss, 0-d, in float32 (float64 for float64).

    Raises:
        ValueError: lambda_param outside [0, 1], and as ``SIGReg``.
        TypeError: features that are no floating-point tensors.

    Differences from lightly 1.6: those of ``SIGReg``, ranks weigh as much as they have rows, and
    there may be no local views.
    """

    @checked
    def __init__(
        self,
        lambda_param: Probability = 0.05,
        gather_distributed: bool = False,
        sigreg_knots: Knots = 17,
        sigreg_t_max: PositiveFloat = 3.0,
        sigreg_num_vectors: PositiveInt = 1024,
        seed: Seed = 0,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        self.lambda_param = lambda_param
        self.sigreg = SIGReg(
            knots=sigreg_knots, t_max=sigreg_t_max, num_vectors=sigreg_num_vectors,
            gather_distributed=gather_distributed, seed=seed, process_group=process_group,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Show the weight."""
        return f"lambda_param={self.lambda_param}"

    def forward(
        self, *, global_proj: Tensor, local_proj: Tensor | None = None,
        directions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the loss of the features [V, N, D] of global and local views.

        ``directions`` [M, D] are those of SIGReg; None: new ones.
        """
        found = self.parts(global_proj=global_proj, local_proj=local_proj, directions=directions)
        return found["loss"]

    def parts(
        self, *, global_proj: Tensor, local_proj: Tensor | None = None,
        directions: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Return the "loss", and without gradients "invariance" and "sigreg" before the weights."""
        views = [("global_proj", global_proj)]
        if local_proj is not None:
            views.append(("local_proj", local_proj))
        for name, view in views:
            _check_features(name, view)
            if view.dim() != 3 or view.shape[1:] != global_proj.shape[1:]:
                wanted = "[V, N, D], with the same N and D for global and local views"
                raise ValueError(f"{name} must have shape {wanted}, got {list(view.shape)}")
        every = torch.cat([view for _, view in views])
        regularity, rows = self.sigreg.with_rows(every, directions)
        wide = every.to(regularity.dtype)
        invariance = (wide - wide[: len(global_proj)].mean(0)).square().mean()
        if self.sigreg.gather_distributed:
            share = world_size(self.sigreg.process_group) * every.shape[1]
            invariance = invariance * (share / rows.to(invariance.dtype))
        loss = self.lambda_param * regularity + (1 - self.lambda_param) * invariance
        return {"loss": loss, "invariance": invariance.detach(), "sigreg": regularity.detach()}
