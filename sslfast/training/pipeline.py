"""From the settings of a run to its data: recipes and loaders."""

from sslfast import data
from sslfast.data import Loader, Recipe
from sslfast.methods.base import Method
from sslfast.training.config import ConfigError, TrainConfig
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
        raise ConfigError(f"recipe: {error}") from error
    if recipe.modality not in method.modalities:
        raise ConfigError(
            f"recipe: '{recipe.name}' makes views of {recipe.modality}s, and {config.method} "
            f"learns from {' or '.join(method.modalities)}s: choose another recipe, such as "
            f"{method.recipe}, or another method"
        )
    return recipe


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
