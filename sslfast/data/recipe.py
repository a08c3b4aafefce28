"""What is done to an image or a video: a recipe of views, plain data that any executor can run."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from sslfast._suggest import did_you_mean

# Channel statistics of ImageNet's training images in [0, 1], the field's usual normalisation.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
        grey_prob: probability that the colours are dropped.
        blur_prob: probability of a Gaussian blur.
        blur_sigma: its standard deviation in pixels of the view, drawn uniformly.
        solarise_prob: probability that values >= 0.5 are inverted.
        mean: subtracted from each channel, in [0, 1] units.
        std: divides each channel, in [0, 1] units.
        num_frames: frames of a clip; None: an image.
        sampling_rate: a clip takes every so many-th frame of the video, from a random one on.

    Raises:
        ValueError: a value is out of its range.
    """

    size: int = 224
    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    jitter_prob: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey_prob: float = 0.0
    blur_prob: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise_prob: float = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    num_frames: int | None = None
    sampling_rate: int = 4

    def __post_init__(self) -> None:
        def check(ok: bool, what: str) -> None:
            if not ok:
                raise ValueError(f"{what}; got {self}")

        check(self.size >= 1, "size must be at least 1 pixel")
        for name in ("flip", "jitter_prob", "grey_prob", "blur_prob", "solarise_prob"):
            check(0 <= getattr(self, name) <= 1, f"{name} is a probability, from 0 to 1")
        for name in ("brightness", "contrast", "saturation"):
            check(getattr(self, name) >= 0, f"{name} must not be negative")
        check(0 <= self.hue <= 0.5, "hue is in turns, from 0 to 0.5")
        if self.crop_scale is not None:
            low, high = self.crop_scale
            check(0 < low <= high <= 1, "crop_scale must satisfy 0 < low <= high <= 1")
        check(0 < self.crop_ratio[0] <= self.crop_ratio[1], "crop_ratio must be 0 < low <= high")
        check(0 < self.blur_sigma[0] <= self.blur_sigma[1], "blur_sigma must be 0 < low <= high")
        check(len(self.mean) == len(self.std) == 3, "mean and std have three channels")
        check(min(self.std) > 0, "std must be positive")
        check(self.num_frames is None or self.num_frames >= 1, "num_frames must be at least 1")
        check(self.sampling_rate >= 1, "sampling_rate must be at least 1")
        check(self.num_frames is None or self.blur_prob == 0, "clips cannot be blurred")

    @property
    def recolours(self) -> bool:
        """Whether any step changes colours (normalisation aside)."""
        return max(self.jitter_prob, self.grey_prob, self.solarise_prob) > 0


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
        if len({view.num_frames is None for view in self.views}) > 1:
            raise ValueError("a recipe's views are all of images, or all of clips (num_frames)")

    @property
    def modality(self) -> Literal["image", "video"]:
        """The kind of data that it is for."""
        return "video" if any(view.num_frames for view in self.views) else "image"


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
    grey_prob=0.2,
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
    known = [field.name for field in fields(View)]
    for key in overrides:
        if key not in known:
            raise ValueError(
                f"View has no field '{key}'; fields: {known}.{did_you_mean(key, known)}"
            )
    if size is not None:
        overrides["size"] = size
    return Recipe(name, tuple(replace(view, **overrides) for view in _RECIPES[name]))
