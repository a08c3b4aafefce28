"""Drop-in loss modules over the fused ops: replace an import and nothing else."""

from sslfast.losses.clip import ClipLoss
from sslfast.losses.dcl import DCLLoss, DCLWLoss
from sslfast.losses.gradcache import cached
from sslfast.losses.info_nce import InfoNCE
from sslfast.losses.linear_cross_entropy import LinearCrossEntropyLoss
from sslfast.losses.matryoshka import MatryoshkaLoss
from sslfast.losses.ntxent import NTXentLoss
from sslfast.losses.siglip import SigLipLoss
from sslfast.losses.supcon import SupConLoss

__all__ = [
    "ClipLoss",
    "DCLLoss",
    "DCLWLoss",
    "InfoNCE",
    "LinearCrossEntropyLoss",
    "MatryoshkaLoss",
    "NTXentLoss",
    "SigLipLoss",
    "SupConLoss",
    "cached",
]
