"""From the settings of a run to its data: recipes and loaders."""

from sslfast import data
from sslfast.data import Loader, Recipe
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
