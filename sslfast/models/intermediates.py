"""What single blocks of a Vision Transformer make of an image."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from sslfast.models.encoding import Encoding


class Intermediates(Encoding):
    """Features of chosen blocks: a base of VisionTransformer."""

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """What chosen blocks make of images or videos, as in timm.

        Args:
            x: images [B, C, H, W] or videos [B, C, T, H, W].
            indices: the last so many blocks, or blocks by number, from the end if negative; None:
                all.
            return_prefix_tokens: beside the patches' tokens those of class and registers.
            norm: apply the final norm.
            stop_early: leave out the blocks after the last chosen one, also for the encoded tokens.
            output_fmt: "NCHW": [B, D, rows, columns] (of videos [B, D, frames, rows, columns]);
                "NLC": [B, L, D].
            intermediates_only: return no encoded tokens.

        Returns:
            (tokens, intermediates): encoded tokens [B, P + L, D], and for each chosen block a
            tensor, or (tensor, prefix tokens [B, P, D]).

        Raises:
            ValueError: a number of no block, or another output_fmt.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, got {output_fmt!r}")
        grid, depth, first = self.grid_of(x), len(self.blocks), self.num_prefix_tokens
        taken = block_numbers(indices, depth)
        last = max(taken) + 1 if stop_early else depth
        tokens, found = self.run_blocks(self.embed(x), grid, taken, last)
        found = [self.norm(t) for t in found] if norm else found
        patches = [t[:, first:] for t in found]
        if output_fmt == "NCHW":
            patches = [t.transpose(1, 2).unflatten(2, grid).contiguous() for t in patches]
        results: list[Any] = patches
        if return_prefix_tokens and first:
            results = [(p, t[:, :first]) for p, t in zip(patches, found, strict=True)]
        return results if intermediates_only else (self.norm(tokens), results)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Any]:
        """The intermediates of ``forward_intermediates``, by DINO's names and defaults.

        Args:
            x: images or videos.
            n: ``indices`` there.
            reshape: "NCHW" instead of "NLC".
            return_prefix_tokens: see there.
            norm: see there.
        """
        return self.forward_intermediates(
            x, n, return_prefix_tokens, norm,
            output_fmt="NCHW" if reshape else "NLC", intermediates_only=True,
        )  # fmt: skip


def block_numbers(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """Numbers of blocks: of the last so many, of those given (negative: from the end), or of all.

    Raises:
        ValueError: there is no such block.
    """
    if indices is None:
        indices = depth
    if isinstance(indices, int):
        indices = range(-indices, 0) if indices > 0 else ()
    if not len(indices) or not -depth <= min(indices) <= max(indices) < depth:
        raise ValueError(f"the model has {depth} blocks: there are none of {list(indices)}")
    return [number % depth for number in indices]
