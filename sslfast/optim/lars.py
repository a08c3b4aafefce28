"""LARS, and SGD with momentum, in one pass over all tensors, with the EMA teacher in it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sslfast.ema import EMATeacher
from sslfast.ema.update import whole
from sslfast.kernels import lars as kernels
from sslfast.kernels import registry
from sslfast.optim._multi_tensor import MultiTensor
from sslfast.optim._parts import local_gradient


class LARS(MultiTensor, torch.optim.SGD):
    """LARS (You et al. 2017, arXiv:1708.03888, algorithm 1): SGD with a rate for every layer.

    A layer's direction g + weight_decay p is scaled by
    trust_coefficient ||p|| / (||g|| + weight_decay ||p|| + eps), or 1 where a norm is 0, before the
    momentum, as in lightly.utils.lars.LARS. With trust off it is torch.optim.SGD, with the same
    trajectories; parameter groups and ``state_dict`` have SGD's layout in either case.

    Args:
        params: parameters, or groups of them (``sslfast.optim.param_groups``); of any mix of real
            floating dtypes, on one device. The state has the dtype of its parameter.
        lr: learning rate: a number, or a tensor of one element.
        momentum: of the direction.
        weight_decay: added to the gradient.
        nesterov: Nesterov momentum.
        trust: whether layers are scaled; an option of groups too. None: those with weight decay, so
            that biases and normalisation layers without it are left out of both, as SimCLR and BYOL
            do.
        trust_coefficient: of the ratio.
        eps: added to its denominator.
        dampening, maximize, differentiable, amsgrad: torch's; only 0 and False.
        foreach, capturable, fused: torch's, which change nothing here: it is one pass.
        max_norm: clip the gradients to this Euclidean norm over all parameters first, without
            writing them; ``grad_norm`` is the norm before, a tensor (``math.inf`` measures it and
            clips nothing).
        max_norm_each: clip the gradient of each parameter to this norm by itself; it is written.
        ema: a teacher that follows in the same pass; see ``AdamW``.

    Raises:
        TypeError: ``ema`` is no EMATeacher.
        ValueError: numbers out of range, or a teacher of another network.
    """

    UNSUPPORTED = ("dampening", "maximize", "differentiable", "amsgrad")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        trust: bool | None = None,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
        dampening: float = 0.0,
        maximize: bool = False,
        amsgrad: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_norm: float | None = None,
        max_norm_each: float | None = None,
        ema: EMATeacher | Sequence[EMATeacher] | None = None,
    ) -> None:
        asked = {
            **{"dampening": dampening, "maximize": maximize},
            **{"differentiable": differentiable, "amsgrad": amsgrad},
        }
        self._refuse_unsupported([asked])
        if not 0 < trust_coefficient < math.inf:
            raise ValueError(f"trust_coefficient must be positive, got {trust_coefficient}")
        if not 0 <= eps < math.inf:
            raise ValueError(f"eps must not be negative, got {eps}")
        self._trust = {"trust": trust, "trust_coefficient": trust_coefficient, "eps": eps}
        super().__init__(
            params,
            lr,
            momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
            fused=True,
        )
        self.defaults.update(self._trust)
        self._complete_groups()
        self.attach(ema, max_norm, max_norm_each)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_trust": self._trust}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._complete_groups()

    def _complete_groups(self) -> None:
        """Groups that torch's SGD saved get this optimiser's trust options."""
        for group in self.param_groups:
            for name, value in self._trust.items():
                group.setdefault(name, value)

    def _fields(self, group: dict[str, Any]) -> Sequence[float | Tensor]:
        return group["lr"], group["momentum"], group["weight_decay"], float(group["nesterov"])

    def _update(
        self,
        groups: list[int],
        params: list[Tensor],
        parts: list[Tensor],
        teachers: list[Tensor | None],
        numbers: Tensor,
        control: Tensor,
    ) -> None:
        with_buffer = [self.param_groups[g]["momentum"] != 0 for g in groups]
        tensors = kernels.Tensors(
            params=parts,
            grads=list(map(local_gradient, params, parts)),
            buffers=[
                self._moments(p, part, "momentum_buffer") if has else None
                for p, part, has in zip(params, parts, with_buffer, strict=True)
            ],
            teachers=teachers,
            groups=groups,
        )
        backend = registry.pick("lars", kernels.problem(tensors))
        backend.step(tensors, numbers, control, self._ratios(groups, params, control[0]))

    def _ratios(self, groups: list[int], params: list[Tensor], factor: Tensor) -> Tensor:
        """The trust ratio of every parameter, float64 [n]; 1 where there is none."""
        ratios = torch.ones(len(params), dtype=torch.float64, device=factor.device)
        for g, group in enumerate(self.param_groups):
            here = [n for n, owner in enumerate(groups) if owner == g]
            trust = group["weight_decay"] != 0 if group["trust"] is None else group["trust"]
            if here and trust:
                weights = _norms([params[n] for n in here])
                gradients = _norms([params[n].grad for n in here]) * factor
                below = gradients + group["weight_decay"] * weights + group["eps"]
                ratio = group["trust_coefficient"] * weights / below
                both = (weights > 0) & (gradients > 0)
                # Groups lie one after the other.
                ratios[here[0] : here[-1] + 1] = torch.where(both, ratio, 1.0)
        return ratios


def _norms(tensors: Sequence[Tensor | None]) -> Tensor:
    """Euclidean norms of whole tensors, float64 [n]; summed in float32 unless one is float64."""
    some = [t for t in tensors if t is not None]
    double = any(t.dtype == torch.float64 for t in some)
    norms = torch._foreach_norm(some, dtype=torch.float64 if double else torch.float32)
    return torch.stack([whole(n) for n in norms]).double()
