"""sslfast: a kernel-accelerated training engine for self-supervised learning.

Names are imported when first used, so that a script which needs one loss loads one loss.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sslfast import (
        data,
        ema,
        eval,
        functional,
        losses,
        masking,
        methods,
        models,
        optim,
        tokenizers,
        training,
    )
    from sslfast.ema import EMATeacher
    from sslfast.kernels.registry import backends, use_backend
    from sslfast.training import load_encoder, load_heads, train

__version__ = "0.1.0"

_LAZY = {
    "EMATeacher": "sslfast.ema",
    "backends": "sslfast.kernels.registry",
    "use_backend": "sslfast.kernels.registry",
    "train": "sslfast.training",
    "load_encoder": "sslfast.training",
    "load_heads": "sslfast.training",
}
_MODULES = (
    "data", "ema", "eval", "functional", "losses", "masking", "methods", "models", "optim",
    "tokenizers", "training",
)  # fmt: skip

__all__ = ["__version__", *_LAZY]


if not TYPE_CHECKING:  # which sees the names above, and no others

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            return getattr(import_module(_LAZY[name]), name)
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*__all__, *_MODULES))
