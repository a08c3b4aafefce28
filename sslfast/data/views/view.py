"""What is done to an image or a video: views and recipes of them, plain data for any executor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
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
)
from sslfast._renamed import VIEW, accepts_old_names
from sslfast._suggest import did_you_mean

# Channel statistics of ImageNet's training images in [0, 1], the field's usual normalisation.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LOCAL = "local"  # the group of small crops, whose size is ``local_size``


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
class Group:
    """Views of a recipe that are made alike, with random draws of their own.

    Attributes:
        name: such as "local".
        view: what is done to each.
        count: how many there are.

    Raises:
        BadArgument: a negative count.
    """

    name: str
    view: View
    count: Annotated[int, Range(0, 1000)] = 1

    def __post_init__(self) -> None:
        check_arguments(Group, vars(self))


@dataclass(frozen=True)
class Recipe:
    """Views of images or of clips, in groups; a loader yields one tensor for each view.

    Views of images are [B, 3, size, size], of clips [B, 3, num_frames, size, size].

    Attributes:
        name: in messages, and of the recipe it was made from.
        views: all views, flat: those of a group beside each other.
        group_names: the group of each view; (): each view is a group of its own, without a name.

    Raises:
        ValueError: no view, views of images and of clips at once, or groups that are none.
    """

    name: str
    views: tuple[View, ...]
    group_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_arguments(Recipe, vars(self))
        if not self.views:
            raise BadArgument("views", "must hold one view or more, got none")
        if len({view.num_frames is None for view in self.views}) > 1:
            raise ValueError("a recipe's views are all of images, or all of clips (num_frames)")
        if not self.group_names:
            return
        if len(self.group_names) != len(self.views):
            raise BadArgument(
                "group_names", f"must name the group of each of {len(self.views)} views"
            )
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise BadArgument(
                "group_names", f"must stand together, with one view each; got {self.group_names}"
            )

    @classmethod
    def of_groups(cls, name: str, *groups: Group) -> "Recipe":
        """A recipe of groups, such as two views of 224 pixels and eight of 96."""
        each = [group for group in groups for _ in range(group.count)]
        return cls(name, tuple(one.view for one in each), tuple(one.name for one in each))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups, in the order of their views."""
        if not self.group_names:
            return tuple(Group("", view) for view in self.views)
        runs = groupby(zip(self.group_names, self.views, strict=True))
        return tuple(Group(*named, len(list(run))) for named, run in runs)

    @property
    def modality(self) -> Literal["image", "video"]:
        """The kind of data that it is for."""
        return "video" if any(view.num_frames for view in self.views) else "image"

    @property
    def view_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of each view, (3, size, size) or (3, num_frames, size, size)."""
        return tuple(view.shape for view in self.views)

    def inputs(self) -> dict[str, Any]:
        """What an encoder's file says of its views: of the first one that is not local."""
        view = next((g.view for g in self.groups if g.name != LOCAL), self.views[0])
        names = ("num_frames", "sampling_rate", "mean", "std")
        return {"image_size": view.size, **{name: getattr(view, name) for name in names}}

    def changed(
        self, size: int | None = None, local_size: int | None = None, **overrides: Any
    ) -> "Recipe":
        """A recipe of the same name with some values changed.

        Args:
            size: of all views but those of the group "local".
            local_size: of those.
            **overrides: fields of View to change in every view; or a group's name, and a dict of
                fields, and ``count``, to change in that group alone.

        Raises:
            ValueError: an unknown field or group (the nearest known one is suggested), or a bad
                value.
        """
        groups = self.groups
        names = [group.name for group in groups if group.name]
        for_all = {key: value for key, value in overrides.items() if key not in names}
        check_fields(View, for_all, others=names)
        if local_size is not None and LOCAL not in names:
            raise BadArgument(
                "local_size", f"is of the group '{LOCAL}', and '{self.name}' has none"
            )
        made = []
        for group in groups:
            own = overrides.get(group.name, {})
            if not isinstance(own, Mapping):
                raise BadArgument(group.name, f"must be a dict of fields of the group, got {own!r}")
            check_fields(View, {k: v for k, v in own.items() if k != "count"}, others=["count"])
            side = local_size if group.name == LOCAL else size
            values = {**for_all, **({} if side is None else {"size": side}), **own}
            count = values.pop("count", group.count)
            try:
                made.append(Group(group.name, replace(group.view, **values), count))
            except BadArgument as error:
                if error.name not in own:
                    raise
                rest = str(error).removeprefix(f"{error.name} ")
                raise BadArgument(f"{group.name}.{error.name}", rest) from error
        if not self.group_names:
            return Recipe(self.name, tuple(group.view for group in made))
        return Recipe.of_groups(self.name, *made)


def check_fields(kind: type, values: Mapping[str, Any], others: Sequence[str] = ()) -> None:
    """Refuse names that are no field of a dataclass.

    Args:
        kind: the dataclass.
        values: by name.
        others: names beside the fields, to suggest.

    Raises:
        ValueError: the message suggests the nearest name.
    """
    known = [*(field.name for field in fields(kind)), *others]
    for key in values:
        if key not in known:
            raise ValueError(
                f"{kind.__name__} has no field '{key}'; fields: {known}.{did_you_mean(key, known)}"
            )
