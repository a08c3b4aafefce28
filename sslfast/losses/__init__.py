"""Drop-in loss modules over the fused ops: replace an import and nothing else."""

from sslfast.functional import info_nce  # as info-nce-pytorch has it beside its class
from sslfast.losses._clip import ClipLoss
from sslfast.losses._info_nce import InfoNCE
from sslfast.losses._linear_cross_entropy import LinearCrossEntropyLoss
from sslfast.losses._ntxent import NTXentLoss
from sslfast.losses._siglip import SigLipLoss
from sslfast.losses._supcon import SupConLoss
from sslfast.losses.dcl import DCLLoss, DCLWLoss
from sslfast.losses.gradcache import cached
from sslfast.losses.matryoshka import MatryoshkaLoss

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
    "info_nce",
]
