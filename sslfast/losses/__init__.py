"""Drop-in loss modules over the fused ops: replace an import and nothing else.

Names are imported when first used, so that a script which needs one loss loads one loss.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sslfast.losses.barlow_twins import BarlowTwinsLoss
    from sslfast.losses.clip import ClipLoss
    from sslfast.losses.dcl import DCLLoss, DCLWLoss
    from sslfast.losses.dino import DINOLoss
    from sslfast.losses.gradcache import cached
    from sslfast.losses.ibot import IBOTPatchLoss
    from sslfast.losses.infonce import InfoNCE, info_nce
    from sslfast.losses.koleo import KoLeoLoss
    from sslfast.losses.linear_cross_entropy import LinearCrossEntropyLoss
    from sslfast.losses.matryoshka import MatryoshkaLoss
    from sslfast.losses.msn import MSNLoss
    from sslfast.losses.negative_cosine import NegativeCosineSimilarity
    from sslfast.losses.ntxent import NTXentLoss
    from sslfast.losses.siglip import SigLipLoss
    from sslfast.losses.sigreg import LeJEPALoss, SIGReg
    from sslfast.losses.supcon import SupConLoss
    from sslfast.losses.swav import SwaVLoss
    from sslfast.losses.vicreg import VICRegLoss

_HOME = {
    "BarlowTwinsLoss": "barlow_twins",
    "ClipLoss": "clip",
    "DCLLoss": "dcl",
    "DCLWLoss": "dcl",
    "DINOLoss": "dino",
    "IBOTPatchLoss": "ibot",
    "InfoNCE": "infonce",
    "KoLeoLoss": "koleo",
    "LeJEPALoss": "sigreg",
    "LinearCrossEntropyLoss": "linear_cross_entropy",
    "MSNLoss": "msn",
    "MatryoshkaLoss": "matryoshka",
    "NTXentLoss": "ntxent",
    "NegativeCosineSimilarity": "negative_cosine",
    "SIGReg": "sigreg",
    "SigLipLoss": "siglip",
    "SupConLoss": "supcon",
    "SwaVLoss": "swav",
    "VICRegLoss": "vicreg",
    "cached": "gradcache",
    "info_nce": "infonce",  # as info-nce-pytorch has it beside its class
}

__all__ = [
    "BarlowTwinsLoss",
    "ClipLoss",
    "DCLLoss",
    "DCLWLoss",
    "DINOLoss",
    "IBOTPatchLoss",
    "InfoNCE",
    "KoLeoLoss",
    "LeJEPALoss",
    "LinearCrossEntropyLoss",
    "MSNLoss",
    "MatryoshkaLoss",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "SIGReg",
    "SigLipLoss",
    "SupConLoss",
    "SwaVLoss",
    "VICRegLoss",
    "cached",
    "info_nce",
]


if not TYPE_CHECKING:  # which sees the names above, and no others

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value  # found at once the next time
        return value


def __dir__() -> list[str]:
    return __all__
