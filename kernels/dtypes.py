"""The dtypes that kernels take, and those that they compute in."""

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and statistics: float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def statistics_dtype(like: Tensor) -> torch.dtype:
    """The dtype of log-sum-exps and positives: float64 on a CPU, else the accumulation dtype.

    In float32 a log-sum-exp of 100, as a cold softmax has, knows its weights to 4e-6 only.
    """
    return torch.float64 if like.device.type == "cpu" else accumulation_dtype(like.dtype)
