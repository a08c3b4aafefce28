"""Pre-training: configuration, the loop, checkpoints, the run's folder and its encoder."""

from typing import TYPE_CHECKING, Any

from sslfast.training.config import TrainConfig

if TYPE_CHECKING:
    from sslfast.training.encoder import load_encoder
    from sslfast.training.heads import load_heads
    from sslfast.training.trainer import train

__all__ = ["TrainConfig", "load_encoder", "load_heads", "train"]

_LAZY = {"load_encoder": "encoder", "load_heads": "heads", "train": "trainer"}


if not TYPE_CHECKING:  # which sees the names above, and no others

    def __getattr__(name: str) -> Any:
        # Importing torch takes seconds; the command line's --help reads the configuration only.
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
