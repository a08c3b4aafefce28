"""Batch norm over the batches of all ranks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslfast.kernels.exchange import gather_rows, name_of


def synchronize_batch_norm(module: nn.Module, process_group: Any = None) -> int:
    """Let every batch norm within a module take its statistics over all ranks, in place.

    Parameters, buffers and their names stay what they are. On a GPU this is torch's
    ``SyncBatchNorm``, which takes no CPU tensors; elsewhere ``RanksBatchNorm``.

    Args:
        module: on the device where it will run.
        process_group: the ranks; None: all.

    Returns:
        How many there are.
    """
    found = 0
    for parent in [*module.modules()]:
        for name, child in parent.named_children():
            if not isinstance(child, _BatchNorm):
                continue
            found += 1
            if isinstance(child, (nn.SyncBatchNorm, RanksBatchNorm)):
                continue
            tensors = [*child.parameters(), *child.buffers()]
            if any(tensor.is_cuda for tensor in tensors):
                new: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(child, process_group)
            else:
                new = RanksBatchNorm.of(child, process_group)
            setattr(parent, name, new)
    return found


class RanksBatchNorm(_BatchNorm):
    """Batch norm (Ioffe and Szegedy 2015, arXiv:1502.03167) with the statistics of all ranks.

    Each rank's mean and variance travel, with the number of its values; batches may differ in
    size. The gradient passes through them: averaged over ranks, it is that of one process.

    Args:
        as of ``torch.nn.BatchNorm2d``.

    Shapes:
        [B, C, ...], of any number of dimensions from two up.
    """

    process_group: Any = None

    @classmethod
    def of(cls, norm: _BatchNorm, process_group: Any = None) -> "RanksBatchNorm":
        """One that shares the parameters and buffers of another batch norm."""
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        new._parameters, new._buffers = norm._parameters, norm._buffers
        new.process_group = process_group
        return new.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm takes [B, C, ...], got {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, ...] over all but the channels, and over the ranks."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        dims = [d for d in range(input.dim()) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(input.dim())]
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        variance, mean = torch.var_mean(x, dims, correction=0)
        count = mean.new_full((1,), input.numel() // max(1, input.shape[1]))
        rows, _ = gather_rows(torch.cat((count, mean, variance))[None], name_of(self.process_group))
        counts, means, variances = rows.split((1, len(mean), len(mean)), 1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        # The variance within ranks and that between them (Chan et al. 1979).
        variance = (counts * (variances + (means - mean).square())).sum(0) / total
        self._follow(mean, variance * total / (total - 1).clamp_min(1))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        out = (x - mean.view(shape)) * scale.view(shape)
        if self.affine:
            out = out + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as torch's batch norm does."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        # Without a momentum, the mean of all batches.
        part: Any = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            running.copy_(running + part * (now.to(running.dtype) - running))
