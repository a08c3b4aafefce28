"""A visual tokenizer from a folder of images: ``sslfast tokenizer fit``."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from sslfast import __version__, data
from sslfast._arguments import PositiveInt, Range, Seed, Side, Threads, check_arguments
from sslfast.data import Loader
from sslfast.eval.plots import plot_views
from sslfast.models import VisionTransformer
from sslfast.tokenizers import Fit, PatchTokenizer, TokenizerSpec, tokenizer_bytes
from sslfast.training.config import ConfigError, user_path
from sslfast.training.distributed import resolve_device
from sslfast.training.encoder import evaluation_recipe, load_encoder, read_description
from sslfast.training.storage import write_atomically

PATCHES_PER_CODE = 128  # how many patches k-means looks at; more cost time and change little
MOST_IMAGES = 10_000
_BATCH = 64


@dataclass(frozen=True)
class TokenizerConfig:
    """Settings of a fit.

    Attributes:
        data: a folder of images, or builtin:mnist, builtin:photos.
        out: the .safetensors file to write.
        vocab_size: codes.
        patch_size: side of a patch in pixels; None: 16, or that of the run's encoder.
        image_size: side of the images; None: 224, or that of the run's encoder.
        norm_pix: compare pixels without the mean and contrast of their patch; None: true, but for
            features of a run.
        run: compare the features of this run's encoder instead of pixels.
        images: views to draw; more than there are images draws several of some. None: as many as
            there are images, 10,000 at most (of a small set, a few images twice and others not).
        recipe: what they are augmented by, and later trained with.
        seed: of the views, the patches that are looked at, and the first codes.
        device: auto, cpu or cuda.
        threads: CPU threads for loading data.
        png: a picture to draw: images, and what is left of them in their tokens.
    """

    data: str
    out: str
    vocab_size: Annotated[int, Range(2, 2**20)] = 512
    patch_size: Side | None = None
    image_size: Side | None = None
    norm_pix: bool | None = None
    run: str | None = None
    images: PositiveInt | None = None
    recipe: str = "beit"
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Threads | None = None
    png: str | None = None

    def __post_init__(self) -> None:
        """Paths as text, also where they are given as a pathlib.Path: a file describes the fit."""
        for name in ("data", "out", "run", "png"):
            value = getattr(self, name)
            if isinstance(value, Path):
                object.__setattr__(self, name, str(value))


def fit_tokenizer(config: TokenizerConfig) -> Fit:
    """Fit a tokenizer on views of images, and write it.

    Returns:
        How well it fits.

    Raises:
        BadArgument: a setting of the wrong kind or out of its range; it is a ValueError.
        ConfigError: a file that is not called .safetensors, or an option that a run's encoder
            rules out.
        ValueError: no images, sizes that do not fit, or fewer patches than codes.
    """
    check_arguments(TokenizerConfig, vars(config), none="null")
    if Path(config.out).suffix != ".safetensors":
        raise ConfigError(
            f"out: a tokenizer is a .safetensors file, got '{config.out}': let its name end in "
            ".safetensors"
        )
    device = resolve_device(config.device)
    tokenizer = _tokenizer(config).to(device)
    spec = tokenizer.spec
    dataset = data.open_dataset(config.data, "train")
    views = config.images or min(len(dataset), MOST_IMAGES)
    size = min(_BATCH, len(dataset), views)
    recipe = data.recipe(config.recipe, size=spec.image_size, mean=spec.mean, std=spec.std)
    if recipe.modality != "image":
        raise ConfigError(f"recipe: '{recipe.name}' makes views of videos: choose one of images")
    loader = data.make_loader(
        dataset, recipe, batch_size=size, seed=config.seed, threads=config.threads
    )
    wanted = PATCHES_PER_CODE * spec.vocab_size
    with closing(loader):
        batches = _images(loader, views, device)
        fit = tokenizer.fit(batches, -(-wanted // views), seed=config.seed)
        if config.png:
            draw(tokenizer, next(_images(loader, 16, device)), Path(user_path(config.png)))
    out, payload = Path(user_path(config.out)), tokenizer_bytes(tokenizer)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda file: file.write(payload))
    return fit


def draw(tokenizer: PatchTokenizer, images: Tensor, path: Path) -> Path:
    """Draw images [B, C, H, W] above what is left of them in their tokens."""
    spec = tokenizer.spec
    parts = f"one of {spec.vocab_size} codes" + ", its mean and contrast" * spec.norm_pix
    return plot_views(
        [images, tokenizer.restore(images)], path, mean=spec.mean, std=spec.std,
        names=["original", "tokens"], title=f"What is left of a patch: {parts}",
    )  # fmt: skip


def _tokenizer(config: TokenizerConfig) -> PatchTokenizer:
    """The tokenizer without its codebook."""
    left_out = ("out", "png", "device", "threads")
    made = {name: value for name, value in asdict(config).items() if name not in left_out}
    made |= {"by": "k-means", "sslfast": __version__}
    if config.run is None:
        view = data.recipe(config.recipe).views[0]
        return PatchTokenizer(
            TokenizerSpec(
                vocab_size=config.vocab_size,
                patch_size=config.patch_size or 16,
                image_size=config.image_size or 224,
                norm_pix=config.norm_pix is not False,
                mean=view.mean,
                std=view.std,
                made=made,
            )
        )
    run = user_path(config.run)
    encoder, given = load_encoder(run), read_description(run)
    if getattr(encoder, "modality", "image") != "image":
        raise ConfigError(
            f"run: {config.run} has an encoder of videos, and visual tokens are of images: give a "
            "run on images"
        )
    if not isinstance(encoder, VisionTransformer):
        raise ConfigError(f"run: {config.run} has no Vision Transformer, but a {given['model']}")
    view = evaluation_recipe(config.run, given).views[0]
    fixed: dict[str, Any] = {"patch_size": encoder.patch_size[0], "image_size": view.size}
    fixed["norm_pix"] = False
    for name, value in fixed.items():
        if getattr(config, name) not in (None, value):
            raise ConfigError(f"{name} follows from the run, where it is {value}: leave it out")
    tokenizer = PatchTokenizer(
        TokenizerSpec(
            vocab_size=config.vocab_size,
            mean=view.mean,
            std=view.std,
            model=given["model"],
            model_args=given["model_args"],
            made=made,
            **fixed,
        )
    )
    tokenizer.encoder.load_state_dict(encoder.state_dict())  # type: ignore[union-attr]
    return tokenizer


def _images(loader: Loader, count: int, device: torch.device) -> Iterator[Tensor]:
    """The first ``count`` views that a loader yields, epoch after epoch."""
    while count > 0:
        for batch in loader:
            views = batch.views[0][:count].to(device)
            yield views
            count -= len(views)
            if count <= 0:
                return
