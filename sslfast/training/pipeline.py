"""From the settings of a run to its data: recipes and loaders."""

import torch
from torch import nn

from sslfast import data
from sslfast.data import Loader, Recipe
from sslfast.models import VisionTransformer
from sslfast.training.config import ConfigError, TrainConfig
from sslfast.training.distributed import Ranks


def build_recipe(config: TrainConfig, default: str) -> Recipe:
    """The recipe that the settings ask for.

    Raises:
        ConfigError: an unknown recipe or field, or a value out of its range.
    """
    # YAML and JSON have lists where the fields are tuples.
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in config.recipe_args.items()}
    try:
        return data.recipe(config.recipe or default, size=config.image_size, **changes)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"recipe: {error}") from error


def check_image_size(recipe: Recipe, encoder: nn.Module) -> None:
    """Find out before the first step whether a Vision Transformer takes the recipe's views.

    Raises:
        ConfigError: views of another size than the model's.
    """
    if not isinstance(encoder, VisionTransformer) or len(encoder.img_size) == 3:
        return
    for view in recipe.views:
        try:
            encoder.grid_of(torch.empty(0, 3, view.size, view.size))
        except ValueError as error:
            raise ConfigError(
                f"image_size: {error}. The views' side is image_size, or else that of the recipe "
                f"{recipe.name}"
            ) from error


def build_loader(config: TrainConfig, default_recipe: str, ranks: Ranks) -> Loader:
    """The loader of this rank's micro-batches.

    Raises:
        ConfigError: the batch cannot be split evenly over ranks and micro-batches.
    """
    parts = ranks.world_size * config.accumulate
    if config.batch_size % parts:
        raise ConfigError(
            f"batch_size {config.batch_size} is over all ranks, and must be a multiple of "
            f"{ranks.world_size} ranks x accumulate {config.accumulate} = {parts}"
        )
    return data.make_loader(
        data.open_dataset(config.data, "train", on_bad_image=config.on_bad_image),
        build_recipe(config, default_recipe),
        batch_size=config.batch_size // parts,
        device=ranks.device,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        threads=config.threads,
        on_bad_image=config.on_bad_image,
    )
