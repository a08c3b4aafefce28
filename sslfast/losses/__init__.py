"""Drop-in loss modules over the fused ops: replace an import and nothing else."""

from sslfast.losses.clip import ClipLoss
from sslfast.losses.info_nce import InfoNCE
from sslfast.losses.ntxent import NTXentLoss
from sslfast.losses.supcon import SupConLoss

__all__ = ["ClipLoss", "InfoNCE", "NTXentLoss", "SupConLoss"]
