"""From the settings of a run to its data: recipes and loaders."""

import torch
from torch import nn

from sslfast import data
from sslfast.data import Loader, Recipe
from sslfast.methods.base import Method
from sslfast.models import VisionTransformer
from sslfast.training.config import ConfigError, TrainConfig, setting_error
from sslfast.training.distributed import Ranks


def build_recipe(config: TrainConfig, method: Method | type[Method]) -> Recipe:
    """The recipe that the settings ask for: the method's own, if they name none.

    Raises:
        ConfigError: an unknown recipe or field, a value out of its range, or views of another kind
            of data than the method learns from.
    """
    # YAML and JSON have lists where the fields are tuples.
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in config.recipe_args.items()}
    try:
        recipe = data.recipe(config.recipe or method.recipe, size=config.image_size, **changes)
    except (TypeError, ValueError) as error:
        raise setting_error("recipe", config.recipe_args, error) from error
    if recipe.modality not in method.modalities:
        raise ConfigError(
            f"recipe: '{recipe.name}' makes views of {recipe.modality}s, and {config.method} "
            f"learns from {' or '.join(method.modalities)}s: choose another recipe, such as "
            f"{method.recipe}, or another method"
        )
    views = len(data.recipe(method.recipe).views)
    if len(recipe.views) != views:
        raise ConfigError(
            f"recipe: '{recipe.name}' makes {len(recipe.views)} views of a sample, and "
            f"{config.method} learns from {views}: choose another recipe, such as {method.recipe}"
        )
    return recipe


def check_image_size(recipe: Recipe, encoder: nn.Module) -> None:
    """Find out before the first step whether a Vision Transformer takes the recipe's views.

    Raises:
        ConfigError: views of another size than the model's.
    """
    if not isinstance(encoder, VisionTransformer):
        return
    for view in recipe.views:
        frames = () if view.num_frames is None else (view.num_frames,)
        try:
            encoder.grid_of(torch.empty(0, 3, *frames, view.size, view.size))
        except ValueError as error:
            setting, rest = "image_size", "The views' side is image_size"
            if frames and frames[0] != encoder.img_size[0]:
                setting, rest = "num_frames", "A clip has recipe_args.num_frames"
            raise ConfigError(
                f"{setting}: {error}. {rest}, or else that of the recipe {recipe.name}"
            ) from error


def build_loader(config: TrainConfig, method: Method, ranks: Ranks) -> Loader:
    """The loader of this rank's micro-batches.

    Raises:
        ConfigError: the batch cannot be split evenly over ranks and micro-batches, or the recipe is
            not for the method.
    """
    parts = ranks.world_size * config.accumulate
    if config.batch_size % parts:
        raise ConfigError(
            f"batch_size {config.batch_size} is over all ranks, and must be a multiple of "
            f"{ranks.world_size} ranks x accumulate {config.accumulate} = {parts}"
        )
    recipe = build_recipe(config, method)
    dataset = data.open_dataset(
        config.data, "train", on_bad_image=config.on_bad_image, modality=recipe.modality
    )
    return data.make_loader(
        dataset,
        recipe,
        batch_size=config.batch_size // parts,
        device=ranks.device,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        threads=config.threads,
        on_bad_image=config.on_bad_image,
    )
