"""A visual tokenizer: every patch of an image becomes the nearest code of a codebook."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslfast import models
from sslfast._arguments import PositiveFloat, PositiveInt, Range, check_arguments
from sslfast.models import VisionTransformer
from sslfast.models.patches import patchify, unpatchify
from sslfast.tokenizers.kmeans import kmeans, nearest, totals_of

EPS = 1e-2  # added to a patch's variance: the noise of flat patches is no texture


@dataclass(frozen=True)
class TokenizerSpec:
    """What a tokenizer does, as plain values: the metadata of its file.

    Attributes:
        vocab_size: V, the number of codes.
        patch_size: side of a patch in pixels.
        image_size: side of the images that it was fitted on.
        norm_pix: pixels are compared without the mean and contrast of their patch, as in MAE.
        channels: of the images.
        mean: subtracted from each channel of the images, in [0, 1] units.
        std: divides each channel, in [0, 1] units.
        model: the encoder whose features are compared instead of pixels, by name; None: pixels.
        model_args: keywords of that encoder.
        made: how the codebook came about, for people.

    Raises:
        ValueError: a size that is not positive, or an image that is no whole number of patches.
    """

    vocab_size: Annotated[int, Range(2, 2**20)]
    patch_size: PositiveInt
    image_size: PositiveInt
    norm_pix: bool = True
    channels: PositiveInt = 3
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[PositiveFloat, ...] = (1.0, 1.0, 1.0)
    model: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_arguments(TokenizerSpec, vars(self))
        if self.image_size % self.patch_size:
            raise ValueError(
                f"images of {self.image_size} pixels are no whole number of patches of "
                f"{self.patch_size}: choose an image_size that patch_size divides"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side


@dataclass(frozen=True)
class Fit:
    """How a codebook fits the patches that it was made of.

    Attributes:
        images: how many it has seen.
        patches: how many of their patches it was made of.
        used: codes that are some patch's nearest.
        perplexity: 2 to the entropy of the codes in bits: as many codes as that, used evenly.
        psnr: of patches restored from their codes, in dB, for pixels in [0, 1]. With ``norm_pix``
            their true mean and contrast are given.
    """

    images: int
    patches: int
    used: int
    perplexity: float
    psnr: float


class PatchTokenizer(nn.Module):
    """Images to tokens and back; frozen, and always in evaluation mode.

    Codes stand for clusters of patches (k-means), or of an encoder's features of patches, as in
    BEiT v2 (arXiv:2208.06366) and HuBERT (arXiv:2106.07447), whose features see beyond the patch.

    Args:
        spec: what it does; the codebook is empty until ``fit``.

    Attributes:
        codebook: float32 [V, F], what patches are compared with.
        pixels: float32 [V, channels * patch_size^2], the mean patch of each code; with ``norm_pix``
            of patches without their mean and contrast.

    Raises:
        ValueError: the spec's model is no Vision Transformer for such images and patches.
    """

    codebook: Tensor
    pixels: Tensor

    def __init__(self, spec: TokenizerSpec) -> None:
        super().__init__()
        self.spec = spec
        numbers = spec.channels * spec.patch_size**2
        width = numbers
        self.encoder: VisionTransformer | None = None
        if spec.model is not None:
            self.encoder = _encoder(spec)
            width = self.encoder.num_features
        self.register_buffer("codebook", torch.zeros(spec.vocab_size, width))
        self.register_buffer("pixels", torch.zeros(spec.vocab_size, numbers))
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "PatchTokenizer":
        """Stay in evaluation mode: tokens do not change while a method trains."""
        del mode
        return super().train(False)

    def features(self, images: Tensor) -> Tensor:
        """What is compared, [B, L, F], of images [B, C, H, W]."""
        if self.encoder is None:
            patches = self.patches(images)
            mean, spread = self._statistics(patches)
            return (patches - mean) / spread
        with torch.autocast(images.device.type, enabled=False):
            encoded = self.encoder.forward_features(images.to(self.codebook.dtype))
        tokens = encoded[:, self.encoder.num_prefix_tokens :]
        return F.layer_norm(tokens, tokens.shape[-1:])

    def check_fits(self, encoder: VisionTransformer) -> None:
        """Raise ValueError unless the tokenizer names the patches of an encoder's images."""
        if len(encoder.grid_size) != 2:
            raise ValueError("visual tokens are of images: build the encoder without num_frames")
        own = (self.spec.patch_size,) * 2, self.spec.channels
        patches = encoder.patch_size, encoder.patch_embed.proj.in_channels
        if own != patches:
            raise ValueError(
                f"the tokenizer is for patches of {own[0]} pixels and {own[1]} channels, the "
                f"encoder cuts {patches[0]} and {patches[1]}: fit another with --patch-size"
            )
        if self.encoder is not None and self.encoder.img_size != encoder.img_size:
            raise ValueError(
                f"the tokenizer's features are of images of {self.encoder.img_size} pixels, the "
                f"encoder takes {encoder.img_size}: fit another with --run of that size"
            )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> tokens int64 [B, L], along the rows, then down."""
        features = self.features(images)
        return nearest(features.flatten(0, 1), self.codebook).view(features.shape[:2])

    def patches(self, images: Tensor) -> Tensor:
        """The patches [B, L, C h w] of images [B, C, H, W], in the codebook's dtype."""
        return patchify(images, (self.spec.patch_size,) * 2).to(self.codebook.dtype)

    def decode(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """The mean patch of each token.

        Args:
            tokens: int64 [..., L].
            patches: the true ones, [..., L, C h w]; with ``norm_pix`` their mean and contrast are
                put back, which tokens do not know.

        Returns:
            [..., L, C h w].
        """
        mean, spread = self._statistics(patches)
        return self.pixels[tokens] * spread + mean

    @torch.no_grad()
    def restore(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> what is left of them in their tokens, in the same shape."""
        side = self.spec.patch_size
        grid = images.shape[2] // side, images.shape[3] // side
        return unpatchify(self.decode(self(images), self.patches(images)), (side, side), grid)

    def _statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and contrast [..., 1] that patches [..., P] are compared without; or 0 and 1."""
        if not self.spec.norm_pix:
            return patches.new_zeros(()), patches.new_ones(())
        return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + EPS).sqrt()

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor], patches: int, *, seed: int = 0) -> Fit:
        """Make the codebook: k-means over some patches of each image.

        Args:
            batches: images [B, C, H, W], normalised by the spec's mean and std.
            patches: how many to take of each image, drawn without replacement; at most L.
            seed: draws them, and the first centres.

        Returns:
            How well it fits.

        Raises:
            ValueError: no images, fewer patches than codes, or fewer different ones.
        """
        generator = torch.Generator().manual_seed(seed)
        features, cut, images = [], [], 0
        for batch in batches:
            found = self.features(batch)
            draws = torch.rand(found.shape[:2], generator=generator)
            chosen = draws.topk(min(patches, found.shape[1])).indices.to(batch.device)[..., None]
            features.append(found.take_along_dim(chosen, 1).flatten(0, 1))
            cut.append(self.patches(batch).take_along_dim(chosen, 1).flatten(0, 1))
            images += len(batch)
        if not images:
            raise ValueError("there are no images to fit a tokenizer on")
        true = torch.cat(cut)
        centers, codes = kmeans(torch.cat(features), self.spec.vocab_size, seed=seed)
        self.codebook.copy_(centers)
        mean, spread = self._statistics(true)
        totals, sizes = totals_of((true - mean) / spread, codes, self.spec.vocab_size)
        self.pixels.copy_(totals / sizes[:, None])
        shares = (sizes / sizes.sum()).double()
        return Fit(
            images=images,
            patches=len(codes),
            used=int((sizes > 0).sum()),
            perplexity=math.exp(float(torch.special.entr(shares).sum())),
            psnr=self._psnr(true, codes),
        )

    def _psnr(self, patches: Tensor, codes: Tensor) -> float:
        std = torch.tensor(self.spec.std, device=patches.device)
        error = (patches - self.decode(codes, patches)).unflatten(1, (self.spec.channels, -1))
        return -10 * math.log10(float((error * std[:, None]).square().mean()) + 1e-12)


def _encoder(spec: TokenizerSpec) -> VisionTransformer:
    encoder = models.create(str(spec.model), **spec.model_args)
    if not isinstance(encoder, VisionTransformer) or encoder.patch_size != (spec.patch_size,) * 2:
        raise ValueError(
            f"tokens of features need a Vision Transformer with patches of {spec.patch_size} "
            f"pixels; {spec.model} with {dict(spec.model_args)} is another model"
        )
    return encoder
