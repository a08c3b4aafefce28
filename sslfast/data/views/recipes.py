"""What is done to an image or a video: a recipe of views, plain data that any executor can run."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from sslfast._arguments import (
    BadArgument,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    Range,
    Side,
    check_arguments,
    checked,
)
from sslfast._renamed import VIEW, accepts_old_names, with_new_names
from sslfast._suggest import did_you_mean

# Channel statistics of ImageNet's training images in [0, 1], the field's usual normalisation.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@accepts_old_names(VIEW)
@dataclass(frozen=True)
class View:
    """One augmented view of an image, or a clip of a video, whose frames are all treated alike.

    The steps run in the order of the fields, but for those of clips, which come first.

    Probabilities are per sample. The four colour factors are drawn together, under one
    ``jitter_prob``, with torchvision's ranges: a factor from U[max(0, 1 - x), 1 + x].

    Attributes:
        size: height and width of the view, in pixels.
        crop_scale: area of the random crop, as a range of fractions of the image ("Inception
            crop", torchvision's RandomResizedCrop). None: no random crop; the largest centred
            square is resized, so an image of ``size`` x ``size`` is left as it is, and a clip is
            taken from the middle of its video.
        crop_ratio: width / height of the random crop, drawn log-uniformly.
        flip: probability of a left-right flip.
        jitter_prob: probability of the colour jitter.
        brightness: strength x of the brightness factor.
        contrast: strength x of the contrast factor, about the mean grey value of the crop.
        saturation: strength x of the saturation factor.
        hue: largest hue shift, in turns: drawn from U[-hue, hue], at most 0.5.
        gray_prob: probability that the colours are dropped.
        blur_prob: probability of a Gaussian blur.
        blur_sigma: its standard deviation in pixels of the view, drawn uniformly.
        solarize_prob: probability that values >= 0.5 are inverted.
        mean: subtracted from each channel, in [0, 1] units.
        std: divides each channel, in [0, 1] units.
        num_frames: frames of a clip; None: an image.
        sampling_rate: a clip takes every so many-th frame of the video, from a random one on.

    Raises:
        BadArgument: a value of the wrong kind, or out of its range; it is a ValueError.
    """

    size: Side = 224
    crop_scale: tuple[PositiveFloat, PositiveFloat] | None = (0.2, 1.0)
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    flip: Probability = 0.0
    jitter_prob: Probability = 0.0
    brightness: NonNegativeFloat = 0.0
    contrast: NonNegativeFloat = 0.0
    saturation: NonNegativeFloat = 0.0
    hue: Annotated[float, Range(0, 0.5)] = 0.0
    gray_prob: Probability = 0.0
    blur_prob: Probability = 0.0
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)
    solarize_prob: Probability = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = IMAGENET_STD
    num_frames: PositiveInt | None = None
    sampling_rate: PositiveInt = 4

    def __post_init__(self) -> None:
        check_arguments(View, vars(self))
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            pair = getattr(self, name)
            if pair is not None and pair[0] > pair[1]:
                raise BadArgument(name, f"must be (low, high), got {pair}")
        if self.crop_scale is not None and self.crop_scale[1] > 1:
            raise BadArgument("crop_scale", f"must not exceed 1, the whole, got {self.crop_scale}")
        if self.num_frames is not None and self.blur_prob > 0:
            raise BadArgument("blur_prob", f"must be 0: clips cannot be blurred; got {self}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, size, size), of clips (3, num_frames, size, size)."""
        frames = () if self.num_frames is None else (self.num_frames,)
        return (3, *frames, self.size, self.size)

    @property
    def recolors(self) -> bool:
        """Whether any step changes colours (normalisation aside)."""
        return max(self.jitter_prob, self.gray_prob, self.solarize_prob) > 0


@dataclass(frozen=True)
class Recipe:
    """A named tuple of views; a loader yields one tensor for each.

    Views of images are [B, 3, size, size], of clips [B, 3, num_frames, size, size].

    Raises:
        ValueError: views of images and of clips at once.
    """

    name: str
    views: tuple[View, ...]

    def __post_init__(self) -> None:
        check_arguments(Recipe, vars(self))
        if not self.views:
            raise BadArgument("views", "must hold one view or more, got none")
        if len({view.num_frames is None for view in self.views}) > 1:
            raise ValueError("a recipe's views are all of images, or all of clips (num_frames)")

    @property
    def modality(self) -> Literal["image", "video"]:
        """The kind of data that it is for."""
        return "video" if any(view.num_frames for view in self.views) else "image"

    @property
    def view_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of each view, (3, size, size) or (3, num_frames, size, size)."""
        return tuple(view.shape for view in self.views)


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
# M. Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive
# Architecture", CVPR 2023, published configurations: crops of at least 30 %, no flips.
_IJEPA = View(size=224, crop_scale=(0.3, 1.0))
# Z. Tong et al., "VideoMAE", NeurIPS 2022, section 3.3: clips of 16 frames, every fourth one (which
# is for Kinetics; for Something-Something every second). The crop is that of C. Feichtenhofer et
# al., "Masked Autoencoders As Spatiotemporal Learners", NeurIPS 2022, section 4: at least 50 % of
# the area, and flips. VideoMAE's code picks among four sides and 13 places, and flips nothing.
_VIDEOMAE = View(size=224, crop_scale=(0.5, 1.0), flip=0.5, num_frames=16)
_RECIPES = {
    "simclr": (_SIMCLR, _SIMCLR),
    "simclr_small": (_SIMCLR_SMALL, _SIMCLR_SMALL),
    "mae": (_MAE,),
    "simmim": (_SIMMIM,),
    "beit": (_BEIT,),
    "ijepa": (_IJEPA,),
    "videomae": (_VIDEOMAE,),
    "eval": (View(size=224, crop_scale=None),),
}


@checked
def recipe(name: str, size: int | None = None, **overrides: Any) -> Recipe:
    """A registered recipe.

    - ``simclr``: two views, SimCLR's ImageNet values (Chen et al. 2020, appendix A); 224 pixels.
    - ``simclr_small``: two views for small images, SimCLR's CIFAR-10 values (the same paper,
      appendix B.9): jitter of strength 0.5 and no blur; 32 pixels.
    - ``mae``, ``simmim``, ``ijepa``: one view, a random crop of at least 20, 67 or 30 % of the
      area, with flips but for ``ijepa`` (those papers' values); 224 pixels.
    - ``beit``: one view, a random crop of at least 8 % of the area, flips, and jitter of
      brightness, contrast and saturation of strength 0.4 (the paper's values); 224 pixels.
    - ``videomae``: one clip of 16 frames, every fourth of the video, a random crop of at least 50 %
      of the area, flips; 224 pixels.
    - ``eval``: one view without randomness: shorter side to ``size``, centre crop; 224 pixels. With
      ``num_frames``, the clip in the middle of the video.

    All normalise by ImageNet's channel statistics, which is the field's habit, not the papers'.

    Args:
        name: which recipe.
        size: height and width of every view, in pixels; None keeps the recipe's own.
        **overrides: fields of View to change in every view.

    Raises:
        ValueError: an unknown name or field (the nearest known one is suggested), or a bad value.
    """
    if name not in _RECIPES:
        known = sorted(_RECIPES)
        raise ValueError(f"unknown recipe '{name}'; known: {known}.{did_you_mean(name, known)}")
    overrides = with_new_names(overrides, VIEW, stacklevel=4)
    known = [field.name for field in fields(View)]
    for key in overrides:
        if key not in known:
            raise ValueError(
                f"View has no field '{key}'; fields: {known}.{did_you_mean(key, known)}"
            )
    if size is not None:
        overrides["size"] = size
    return Recipe(name, tuple(replace(view, **overrides) for view in _RECIPES[name]))
