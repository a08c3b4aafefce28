"""Recipes by name: those of the papers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sslfast._arguments import checked
from sslfast._renamed import VIEW, with_new_names
from sslfast.data.registry import Registry
from sslfast.data.views.view import LOCAL, Group, Recipe, View, check_fields

# Of images and videos ``Recipe``; of other data any frozen dataclass with ``name`` and what else
# ``executors.executor.AnyRecipe`` asks for, which a file of this package adds.
RECIPES: Registry[Any] = Registry("sslfast.data.views", "recipe")

# T. Chen, S. Kornblith, M. Norouzi, G. Hinton, "A Simple Framework for Contrastive Learning of
# Visual Representations", ICML 2020, appendix A: random crop of 8 to 100 % of the area and resize,
# flip, colour distortion of strength 1 with probability 0.8, grey with 0.2, blur with 0.5.
_SIMCLR = View(
    size=224,
    crop_scale=(0.08, 1.0),
    flip=0.5,
    jitter_prob=0.8,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    gray_prob=0.2,
    blur_prob=0.5,
)
# The same paper, appendix B.9 (CIFAR-10): the same crop, strength 0.5, no blur.
_SIMCLR_SMALL = replace(
    _SIMCLR, size=32, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur_prob=0.0
)
# X. Chen, H. Fan, R. Girshick, K. He, "Improved Baselines with Momentum Contrastive Learning",
# 2020, and its published code: blur, jitter of strength 0.4, crops of at least 20 %. SimSiam's too.
_MOCO = replace(
    _SIMCLR, crop_scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
)
# K. He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, section 4.1: random
# crops and flips, nothing else.
_MAE = View(size=224, crop_scale=(0.2, 1.0), flip=0.5)
# Z. Xie et al., "SimMIM", CVPR 2022, section 4.1.1: crops of at least 67 % of the area, and flips.
_SIMMIM = replace(_MAE, crop_scale=(0.67, 1.0))
# H. Bao et al., "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022, section 2.5 and the
# published code: crops of at least 8 % (torchvision's default), flips, colour jitter of 0.4.
_BEIT = View(
    size=224,
    crop_scale=(0.08, 1.0),
    flip=0.5,
    jitter_prob=1.0,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
)
# S. Gidaris, P. Singh, N. Komodakis, "Unsupervised Representation Learning by Predicting Image
# Rotations", ICLR 2018, the published code for ImageNet: crops of at least 8 %, and flips.
_ROTNET = View(size=224, crop_scale=(0.08, 1.0), flip=0.5)
# M. Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive
# Architecture", CVPR 2023, published configurations: crops of at least 30 %, no flips.
_IJEPA = View(size=224, crop_scale=(0.3, 1.0))
# Z. Tong et al., "VideoMAE", NeurIPS 2022, section 3.3: clips of 16 frames, every fourth one (which
# is for Kinetics; for Something-Something every second). The crop is that of C. Feichtenhofer et
# al., "Masked Autoencoders As Spatiotemporal Learners", NeurIPS 2022, section 4: at least 50 % of
# the area, and flips. VideoMAE's code picks among four sides and 13 places, and flips nothing.
_VIDEOMAE = View(size=224, crop_scale=(0.5, 1.0), flip=0.5, num_frames=16)
# J.-B. Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, appendix B, table 6: the views
# differ in blur and solarisation. Brightness and contrast are torchvision's here; the published
# code adds to the brightness, and takes contrast for each channel.
_BYOL = replace(_SIMCLR, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, blur_prob=1.0)
_BYOL_SECOND = replace(_BYOL, blur_prob=0.1, solarize_prob=0.2)
# M. Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
# NeurIPS 2020, section 3.2 and the published code: SimCLR's colours, two crops of at least 14 % of
# the area, six of 5 to 14 %.
_SWAV = replace(_SIMCLR, crop_scale=(0.14, 1.0))
_SWAV_LOCAL = replace(_SIMCLR, size=96, crop_scale=(0.05, 0.14))
# M. Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, section
# 3.2 and the published code: BYOL's colours, two global crops of at least 40 % of the area, eight
# local ones of 5 to 40 %.
_DINO, _DINO_SECOND = (replace(view, crop_scale=(0.4, 1.0)) for view in (_BYOL, _BYOL_SECOND))
_DINO_LOCAL = replace(_BYOL, size=96, crop_scale=(0.05, 0.4), blur_prob=0.5)
# M. Assran et al., "Masked Siamese Networks for Label-Efficient Learning", ECCV 2022, section 5 and
# the published code: SimCLR's colours of strength 0.5, two crops of at least 30 % of the area, ten
# of 5 to 30 %.
_MSN = replace(_MOCO, crop_scale=(0.3, 1.0))
_MSN_LOCAL = replace(_MSN, size=96, crop_scale=(0.05, 0.3))
# R. Balestriero, Y. LeCun, "LeJEPA", 2025, arXiv:2511.08544, and the recommendations of the
# published code: BYOL's colours, alike for global crops of at least 30 % and local ones of 5 to 30.
_LEJEPA = replace(_BYOL, crop_scale=(0.3, 1.0), blur_prob=0.5, solarize_prob=0.2)
_LEJEPA_LOCAL = replace(_LEJEPA, size=98, crop_scale=(0.05, 0.3))

for _name, _views in {
    "simclr": (_SIMCLR, _SIMCLR),
    "simclr_small": (_SIMCLR_SMALL, _SIMCLR_SMALL),
    "moco": (_MOCO, _MOCO),
    "mae": (_MAE,),
    "simmim": (_SIMMIM,),
    "beit": (_BEIT,),
    "rotnet": (_ROTNET,),
    "ijepa": (_IJEPA,),
    "videomae": (_VIDEOMAE,),
    "eval": (View(size=224, crop_scale=None),),
}.items():
    RECIPES.add(_name, Recipe(_name, _views))
for _name, _groups in {
    "swav": (Group("large", _SWAV, 2), Group(LOCAL, _SWAV_LOCAL, 6)),
    "msn": (Group("large", _MSN, 2), Group(LOCAL, _MSN_LOCAL, 10)),
    "byol": (Group("first", _BYOL), Group("second", _BYOL_SECOND)),
    "dino": (
        Group("first", _DINO),
        Group("second", _DINO_SECOND),
        Group(LOCAL, _DINO_LOCAL, 8),
    ),
    "lejepa": (Group("global", _LEJEPA, 2), Group(LOCAL, _LEJEPA_LOCAL, 6)),
}.items():
    RECIPES.add(_name, Recipe.of_groups(_name, *_groups))


@checked
def recipe(
    name: str | Any, size: int | None = None, local_size: int | None = None, **overrides: Any
) -> Any:
    """A registered recipe, or one of your own, with changes.

    - ``simclr``: two views, SimCLR's ImageNet values (Chen et al. 2020, appendix A); 224 pixels.
    - ``simclr_small``: two views for small images, SimCLR's CIFAR-10 values (the same paper,
      appendix B.9): jitter of strength 0.5 and no blur; 32 pixels.
    - ``moco``: two views as of ``simclr``, but of at least 20 % of the area, and colours changed by
      0.4 (Chen et al. 2020, arXiv:2003.04297; also of SimSiam); 224 pixels.
    - ``mae``, ``simmim``, ``ijepa``: one view, a random crop of at least 20, 67 or 30 % of the
      area, with flips but for ``ijepa`` (those papers' values); 224 pixels.
    - ``beit``: one view, a random crop of at least 8 % of the area, flips, and jitter of
      brightness, contrast and saturation of strength 0.4 (the paper's values); 224 pixels.
    - ``rotnet``: one view, a random crop of at least 8 % of the area, and flips (Gidaris et al.
      2018); 224 pixels.
    - ``videomae``: one clip of 16 frames, every fourth of the video, a random crop of at least 50 %
      of the area, flips; 224 pixels.
    - ``byol``: two views, "first" and "second", that differ: blur always or with probability 0.1,
      solarisation never or with 0.2 (Grill et al. 2020, table 6); 224 pixels.
    - ``dino``: "first" and "second", as of ``byol``, of at least 40 % of the area, 224 pixels, and
      eight "local" ones of 5 to 40 %, 96 pixels (Caron et al. 2021).
    - ``swav``: two "large" views of at least 14 % of the area, 224 pixels, and six "local" ones of
      5 to 14 %, 96 pixels, all with SimCLR's colours (Caron et al. 2020).
    - ``msn``: two "large" views of at least 30 % of the area, 224 pixels, and ten "local" ones of 5
      to 30 %, 96 pixels, all with the colours of ``moco`` (Assran et al. 2022).
    - ``lejepa``: two "global" views of at least 30 % of the area, 224 pixels, and six "local" ones
      of 5 to 30 %, 98 pixels; all with ``byol``'s colours, blur with probability 0.5 and
      solarisation with 0.2 (Balestriero and LeCun 2025).
    - ``eval``: one view without randomness: shorter side to ``size``, centre crop; 224 pixels. With
      ``num_frames``, the clip in the middle of the video.

    All normalise by ImageNet's channel statistics, which is the field's habit, not the papers'.

    Args:
        name: which recipe; or a recipe.
        size: height and width of every view, in pixels, but of those of a group "local"; None keeps
            the recipe's own.
        local_size: of those of the group "local"; None keeps it.
        **overrides: fields of View to change in every view; or a group's name and a dict of fields,
            and ``count``, to change in that group: ``recipe("dino", local={"count": 6})``. Of
            recipes for other data, their fields.

    Returns:
        A ``Recipe``, or the recipe that a file of ``sslfast.data.views`` added for other data.

    Raises:
        ValueError: an unknown name, field or group (the nearest known one is suggested), or a bad
            value.
    """
    found = RECIPES.get(name) if isinstance(name, str) else name
    overrides = with_new_names(_tuples(overrides), VIEW, stacklevel=4)
    if isinstance(found, Recipe):
        for key, value in overrides.items():
            if isinstance(value, Mapping):
                overrides[key] = with_new_names(_tuples(value), VIEW, stacklevel=4)
        return found.changed(size, local_size, **overrides)
    sizes = {"size": size, "local_size": local_size}
    overrides |= {key: value for key, value in sizes.items() if value is not None}
    check_fields(type(found), overrides)
    return replace(found, **overrides)


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples for the lists that YAML and JSON have."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
