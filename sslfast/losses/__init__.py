"""Drop-in loss modules over the fused ops: replace an import and nothing else."""

from sslfast.losses.ntxent import NTXentLoss

__all__ = ["NTXentLoss"]
