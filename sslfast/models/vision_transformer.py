"""Vision Transformers with the state_dict names and numerics of timm's VisionTransformer.

Dosovitskiy et al. 2021, arXiv:2010.11929. The encoder can run on some patches of an image only
(masked autoencoders), and on tubelets of a video.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from torch import Tensor, nn

from sslfast._arguments import (
    Depth,
    NonNegativeFloat,
    PositiveFloat,
    Probability,
    Range,
    Rate,
    Width,
    checked,
)
from sslfast.models.crops import per_view
from sslfast.models.embedding import PosEmbed, Size
from sslfast.models.initialize import init_vit
from sslfast.models.intermediates import Intermediates
from sslfast.models.layers import ACTIVATIONS, EPS, MLPS, Layer, named, norm_of
from sslfast.models.pooling import LatentPool, Pool, pool_tokens
from sslfast.models.rope import RotaryPositions
from sslfast.models.transformer import Block

Stretch = Annotated[float, Range(1, 1000)]
Start = Literal["", "mae", "beit"]


class VisionTransformer(Intermediates):
    """A Vision Transformer; the keywords are timm's, and mean what they mean there.

    Layers are named, as here, or given as classes: this package's, timm's, or any that take the
    same keywords.

    Args:
        img_size: height and width of the images in pixels, or one number for both.
        patch_size: height and width of a patch.
        in_chans: channels.
        num_classes: 0 makes an encoder (``head`` is the identity); otherwise ``head`` is linear.
        global_pool: features are the class "token"; the mean ("avg"), maximum ("max") or half the
            sum of both ("avgmax") of the patches' tokens; what a learned query attends to ("map",
            SigLIP's); or all tokens ("").
        embed_dim: D.
        depth: blocks.
        num_heads: heads of a block.
        mlp_ratio: hidden width of a block's MLP over D.
        qkv_bias: biases of queries, keys and values.
        qk_norm: norms of queries and keys.
        scale_attn_norm: a norm before the attention's last linear layer.
        scale_mlp_norm: a norm before the MLP's last linear layer.
        proj_bias: biases of the other linear layers of a block.
        init_values: layer scale, from this value; None or 0: none.
        class_token: prepend a class token.
        pos_embed: "learn", "sincos" (a fixed table, of MAE or VideoMAE; not in timm, whose learned
            positions have the same name and shape), "rope" (rotary positions of patches, as in
            DINOv3, which attention applies; images only), or "none".
        no_embed_class: class and register tokens have no positions.
        reg_tokens: register tokens (Darcet et al. 2024, arXiv:2309.16588).
        pre_norm: a norm before the blocks, and no bias of the patch embedding (CLIP).
        final_norm: a norm at the end ...
        fc_norm: ... after the pooling instead of before; None: with "avg", "avgmax" and "max".
        pool_include_prefix: class and register tokens are pooled too.
        dynamic_img_size: take images of any whole number of patches; positions are interpolated.
        drop_rate: dropout before the head.
        pos_drop_rate: dropout after the positions.
        proj_drop_rate: dropout of a block's linear layers.
        attn_drop_rate: dropout of the attention.
        drop_path_rate: stochastic depth of the last block, in [0, 1), falling linearly to 0 in the
            first.
        weight_init: "" as timm's; "mae", as MAE (for videos VideoMAE) was published; "beit", as
            BEiT was: with ``fix_init``, and tokens as large as other weights.
        fix_init: the deeper a block, the smaller its last weights begin (BEiT, I-JEPA).
        embed_norm_layer: a norm of the embedded patches, as ``norm_layer``; None: none.
        norm_layer: "layernorm", "rmsnorm", or what makes a norm of a width.
        norm_eps: eps of norms by name; not in timm, where the class carries it.
        act_layer: of the MLPs: "gelu", "gelu_tanh" (SigLIP), "quick_gelu" (CLIP), "relu", "silu" or
            a class; None: "silu" in a SwiGLU, else "gelu".
        block_fn: the class of the blocks.
        mlp_layer: "mlp", "swiglu", "swiglu_packed" (DINOv2's giant) or a class.
        attn_layer: "attn" or a class.
        num_frames: None for images, or T of videos [B, C, T, H, W].
        tubelet_size: frames of a patch of a video.
        grad_checkpointing: keep only the blocks' inputs and compute them again in the backward
            pass, for memory.
        rope_temperature: of rotary positions, as what follows; see RotaryPositions.
        rope_shift_coords: while training, see there; None: none.
        rope_jitter_coords: see there.
        rope_rescale_coords: see there; 2 in DINOv3.

    Attributes:
        num_features: D.
        num_classes: of the head.
        grid_size: patches along each axis: (rows, columns), or (frames, rows, columns).
        patch_size: pixels of a patch along each axis.
        num_prefix_tokens: class and register tokens, which come before the patches.
        modality: "image", or "video" with num_frames.

    Raises:
        ValueError: an image that is no whole number of patches, token pooling without class token,
            a width that the heads do not divide, an unknown name of a layer, rotary positions in
            videos, in blocks of another class or in heads of a width that is no multiple of 4.
        BadArgument: a value of the wrong kind or out of its range; it is a ValueError.
    """

    @checked
    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: Width = 3,
        num_classes: Annotated[int, Range(0, 2**24)] = 0,
        global_pool: Pool = "token",
        embed_dim: Width = 768,
        depth: Depth = 12,
        num_heads: Width = 12,
        mlp_ratio: Annotated[float, Range(0, 1000, "(]")] = 4.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        scale_attn_norm: bool = False,
        scale_mlp_norm: bool = False,
        proj_bias: bool = True,
        init_values: NonNegativeFloat | None = None,
        class_token: bool = True,
        pos_embed: PosEmbed = "learn",
        no_embed_class: bool = False,
        reg_tokens: Annotated[int, Range(0, 2**20)] = 0,
        pre_norm: bool = False,
        final_norm: bool = True,
        fc_norm: bool | None = None,
        pool_include_prefix: bool = False,
        dynamic_img_size: bool = False,
        drop_rate: Probability = 0.0,
        pos_drop_rate: Probability = 0.0,
        proj_drop_rate: Probability = 0.0,
        attn_drop_rate: Probability = 0.0,
        drop_path_rate: Rate = 0.0,
        weight_init: Start = "",
        fix_init: bool = False,
        embed_norm_layer: str | Layer | None = None,
        norm_layer: str | Layer | None = None,
        norm_eps: PositiveFloat = EPS,
        act_layer: str | Layer | None = None,
        block_fn: Layer = Block,
        mlp_layer: str | Layer = "mlp",
        attn_layer: str | Layer = "attn",
        num_frames: Width | None = None,
        tubelet_size: Width = 2,
        grad_checkpointing: bool = False,
        rope_temperature: PositiveFloat = 100.0,
        rope_shift_coords: NonNegativeFloat | None = None,
        rope_jitter_coords: Stretch | None = None,
        rope_rescale_coords: Stretch | None = None,
    ) -> None:
        if global_pool == "token" and not class_token:
            raise ValueError('without a class token, use global_pool="avg"')
        norm = norm_of("norm_layer", norm_layer or "layernorm", norm_eps)
        embed_norm = (
            norm_of("embed_norm_layer", embed_norm_layer, norm_eps) if embed_norm_layer else None
        )
        mlp = named("mlp_layer", mlp_layer, MLPS)
        default_act: Layer = getattr(mlp, "activation", nn.GELU)
        act = named("act_layer", act_layer, ACTIVATIONS) if act_layer else default_act
        super().__init__(
            img_size, patch_size, in_chans, embed_dim,
            class_token=class_token, pos_embed=pos_embed, no_embed_class=no_embed_class,
            reg_tokens=reg_tokens, dynamic_img_size=dynamic_img_size, num_frames=num_frames,
            tubelet_size=tubelet_size, bias=not pre_norm,
            embed_norm=embed_norm,
        )  # fmt: skip
        self.global_pool: Pool = global_pool
        self.pool_include_prefix = pool_include_prefix
        self.grad_checkpointing = grad_checkpointing
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.norm_pre = norm(embed_dim) if pre_norm else nn.Identity()
        self.blocks = nn.Sequential(
            *(
                block_fn(
                    dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias,
                    qk_norm=qk_norm, scale_attn_norm=scale_attn_norm,
                    scale_mlp_norm=scale_mlp_norm, proj_bias=proj_bias, init_values=init_values,
                    proj_drop=proj_drop_rate, attn_drop=attn_drop_rate,
                    drop_path=drop_path_rate * n / max(depth - 1, 1), norm_layer=norm,
                    act_layer=act, mlp_layer=mlp, attn_layer=attn_layer, depth=n,
                )
                for n in range(depth)
            )
        )  # fmt: skip
        norm_last = global_pool in ("avg", "avgmax", "max") if fc_norm is None else fc_norm
        self.norm, self.fc_norm = (
            norm(embed_dim) if final_norm and wanted else nn.Identity()
            for wanted in (not norm_last, norm_last)
        )
        self.attn_pool = (
            LatentPool(embed_dim, num_heads, mlp_ratio, norm, act) if global_pool == "map" else None
        )
        self.head_drop = nn.Dropout(drop_rate)
        self.num_classes = num_classes
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        moved = rope_shift_coords, rope_jitter_coords, rope_rescale_coords
        self.rope_embed = None
        if pos_embed == "rope":
            if num_frames is not None or not self.packs():
                raise ValueError(
                    'pos_embed="rope" is for images, and for blocks and attention of this package: '
                    "leave out num_frames, block_fn and attn_layer, or take other positions"
                )
            self.rope_embed = RotaryPositions(embed_dim // num_heads, rope_temperature, *moved)
        elif any(coords is not None for coords in moved):
            raise ValueError('rope_shift_coords and the like are for pos_embed="rope"')
        init_vit(self, weight_init, fix_init)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch activation checkpointing of the blocks."""
        self.grad_checkpointing = enable

    def layers(self) -> list[list[nn.Module | nn.Parameter]]:
        """What belongs to each layer from the input up: embedding, every block, what is above."""
        last: list[nn.Module] = [self.norm, self.fc_norm, self.head]
        last += [] if self.attn_pool is None else [self.attn_pool]
        above = {p for part in (*self.blocks, *last) for p in part.parameters()}
        layers: list[list[nn.Module | nn.Parameter]] = [
            [p for p in self.parameters() if p not in above]
        ]
        layers += [[block] for block in self.blocks]
        return [*layers, [*last]]

    @checked
    def reset_classifier(
        self, num_classes: Annotated[int, Range(0, 2**24)], global_pool: Pool | None = None
    ) -> None:
        """Put a new linear head, or with 0 none, on the features.

        Args:
            num_classes: of the new head.
            global_pool: pool so from now on; None: as before. "map" cannot be added.

        Raises:
            ValueError: an unknown pooling, one that needs what the model does not have.
        """
        if global_pool is not None:
            if global_pool == "token" and self.cls_token is None:
                raise ValueError("token pooling needs a class token, and this model has none")
            if global_pool == "map" and self.attn_pool is None:
                raise ValueError('build the model with global_pool="map": it has weights')
            if global_pool != "map":
                self.attn_pool = None
            self.global_pool = global_pool
        weight = self.patch_embed.proj.weight
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.to(weight.device, weight.dtype).train(self.training)

    def pool(self, tokens: Tensor, pool_type: Pool | None = None) -> Tensor:
        """Encoded tokens [B, P + K, D] -> [B, D], before ``fc_norm``; with "" as they are.

        Args:
            tokens: from ``forward_features``.
            pool_type: pool so, where the model has no "map"; None: as the model was built.
        """
        patches = tokens if self.pool_include_prefix else tokens[:, self.num_prefix_tokens :]
        if self.attn_pool is not None:
            return self.attn_pool(patches)
        kind = self.global_pool if pool_type is None else pool_type
        return pool_tokens(kind, tokens, patches)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Encoded tokens [B, P + K, D] -> features [B, D], or logits [B, num_classes].

        Args:
            tokens: from ``forward_features``.
            pre_logits: features although there is a head.
        """
        features = self.head_drop(self.fc_norm(self.pool(tokens)))
        return features if pre_logits else self.head(features)

    def forward(self, x: Tensor) -> Tensor:
        """Images or videos -> features [B, D], or logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_crops(self, views: Sequence[Tensor]) -> list[Tensor]:
        """``forward`` of views of several sizes, in one pass; see ``transform_crops``.

        Args:
            views: images [B, C, H, W] each; in whatever order sizes come.

        Returns:
            Features [B, D], or logits [B, num_classes], of each view.
        """
        return per_view(views, lambda x: [self.forward_head(t) for t in self._encode_sizes(x)])
