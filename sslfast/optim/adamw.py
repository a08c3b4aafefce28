"""AdamW in one pass over all tensors, with the EMA teacher in it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from sslfast.ema import EMATeacher
from sslfast.ema.update import local_shard
from sslfast.kernels import adamw as kernels
from sslfast.kernels import registry
from sslfast.optim._multi_tensor import MultiTensor
from sslfast.optim._parts import local_gradient


class AdamW(MultiTensor, torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2), as torch.optim.AdamW.

    The same trajectories, parameter groups and ``state_dict`` as torch's class, which loads ours
    and the other way round. One pass moves 28 bytes a float32 parameter, and 36 with a teacher,
    where a step and an update apart move 40. A tensor ``lr`` is read on the device, and steps are
    counted there, so that ``step`` can be part of a CUDA graph.

    Args:
        params: parameters, or groups of them (``sslfast.optim.param_groups``); of any mix of real
            floating dtypes, on one device. The state has the dtype of its parameter.
        lr: learning rate: a number, or a tensor of one element.
        betas: decay of the averages of the gradient and its square.
        eps: added to the denominator.
        weight_decay: decoupled: every step takes lr * weight_decay of a parameter.
        amsgrad, maximize, differentiable: torch's; only False.
        foreach, capturable, fused: torch's, which change nothing here: it is one pass that can be
            captured, whatever they are.
        max_norm: clip the gradients to this Euclidean norm over all parameters, as
            ``torch.nn.utils.clip_grad_norm_``, without writing them; ``grad_norm`` is the norm
            before, a tensor (``math.inf`` measures it and clips nothing).
        max_norm_each: clip the gradient of each parameter to this Euclidean norm by itself, as
            DINO's code does; it is written.
        ema: a teacher that follows in the same pass: ``step()`` then does what
            ``teacher.update(student)`` after it would, for all of the student's parameters and
            buffers. Parameters that are not the student's (a predictor) have no teacher. Of several
            teachers the first follows in the pass, the others right after it, in the same step.

    Raises:
        TypeError: ``ema`` is no EMATeacher.
        ValueError: numbers out of range, or a teacher of another network.
    """

    UNSUPPORTED = ("amsgrad", "maximize", "differentiable")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_norm: float | None = None,
        max_norm_each: float | None = None,
        ema: EMATeacher | Sequence[EMATeacher] | None = None,
    ) -> None:
        asked = {"amsgrad": amsgrad, "maximize": maximize, "differentiable": differentiable}
        self._refuse_unsupported([asked])
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas}")
        super().__init__(params, lr, betas, eps, weight_decay, capturable=capturable, fused=True)
        self.attach(ema, max_norm, max_norm_each)

    def _fields(self, group: dict[str, Any]) -> Sequence[float | Tensor]:
        return group["lr"], *group["betas"], group["eps"], group["weight_decay"]

    def _update(
        self,
        groups: list[int],
        params: list[Tensor],
        parts: list[Tensor],
        teachers: list[Tensor | None],
        numbers: Tensor,
        control: Tensor,
    ) -> None:
        steps = [self._step_of(p) for p in params]
        both = list(zip(params, parts, strict=True))
        tensors = kernels.Tensors(
            params=parts,
            grads=list(map(local_gradient, params, parts)),
            exp_avgs=[self._moments(*each, "exp_avg") for each in both],
            exp_avg_sqs=[self._moments(*each, "exp_avg_sq") for each in both],
            steps=steps,
            teachers=teachers,
            groups=groups,
        )
        backend = registry.pick("adamw", kernels.problem(tensors))
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        torch._foreach_add_(steps, 1 if found_inf is None else (found_inf.reshape(()) == 0).float())
        backend.step(tensors, numbers, control)

    def _step_of(self, p: Tensor) -> Tensor:
        """How many steps a parameter has had: one float32, as the kernels read it."""
        state, device = self.state[p], local_shard(p).device
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        step: Tensor = state["step"]
        if step.numel() != 1:
            raise ValueError(f"the step of a parameter is of shape {list(step.shape)}")
        if step.dtype != torch.float32 or step.device != device:
            step = state["step"] = step.to(device, torch.float32)
        return step
