"""From the settings of a run to its data: recipes and loaders."""

from itertools import zip_longest
from typing import Any

from torch import nn

from sslfast import data
from sslfast.data import Loader
from sslfast.data.executors.executor import AnyRecipe
from sslfast.data.views.view import LOCAL
from sslfast.methods.base import Method
from sslfast.training.config import ConfigError, TrainConfig, setting_error
from sslfast.training.distributed import Ranks


def build_recipe(config: TrainConfig, method: Method | type[Method]) -> Any:
    """The recipe that the settings ask for: the method's own, if they name none.

    Raises:
        ConfigError: an unknown recipe or field, a value out of its range, or views of another kind
            of data than the method learns from.
    """
    own = method.own_recipe(config.encoder_args)
    for key, setting in (("size", "image_size"), ("local_size", "local_size"), ("name", "recipe")):
        if key in config.recipe_args:
            raise ConfigError(f"recipe_args.{key}: that is the setting {setting}")
    sizes = {"size": config.image_size, "local_size": config.local_size}
    try:
        recipe = data.recipe(config.recipe or own, **sizes, **config.recipe_args)
    except (TypeError, ValueError) as error:
        raise setting_error("recipe", config.recipe_args, error) from error
    if recipe.modality not in method.modalities:
        raise ConfigError(
            f"recipe: '{recipe.name}' makes views of {recipe.modality}s, and {config.method} "
            f"learns from {' or '.join(method.modalities)}s: choose another recipe, such as "
            f"{own.name}, or another method"
        )
    wanted, given = count_views(own), count_views(recipe)
    if given != wanted and f"{given} and local" != wanted:  # which may be none, too
        raise ConfigError(
            f"recipe: '{recipe.name}' makes {given} views of a sample, and {config.method} learns "
            f"from {wanted}: choose another recipe, such as {own.name}"
        )
    return recipe


def count_views(recipe: AnyRecipe) -> str:
    """How many views a recipe makes, in words; of local ones there may be any number."""
    groups = getattr(recipe, "groups", ())
    if not groups:  # of other data: its method and its executor know
        return "its own"
    others = sum(group.count for group in groups if group.name != LOCAL)
    return f"{others} and local" if any(group.name == LOCAL for group in groups) else str(others)


def check_image_size(recipe: AnyRecipe, encoder: nn.Module) -> None:
    """Find out before the first step whether the encoder takes the recipe's views.

    An encoder may have a method ``check_input(shape)``, which raises ValueError where it does not
    take a view of that shape (without the batch); one that has none takes anything.

    Raises:
        ConfigError: views of another size than the model's.
    """
    check = getattr(encoder, "check_input", None)
    if check is None:
        return
    groups = [group.name for group in getattr(recipe, "groups", ()) for _ in range(group.count)]
    for shape, group in zip_longest(recipe.view_shapes, groups):
        try:
            check(shape)
        except ValueError as error:
            setting = "local_size" if group == LOCAL else "image_size"
            hints = {
                "image": f"The views' side is {setting}",
                "video": f"The views' side is {setting}, and a clip has recipe_args.num_frames",
            }
            hint = hints.get(recipe.modality, "What is set of them is in recipe_args")
            raise ConfigError(
                f"{setting if recipe.modality in hints else 'recipe'}: {error}. {hint}, or else "
                f"that of the recipe {recipe.name}"
            ) from error


def build_loader(config: TrainConfig, recipe: AnyRecipe, ranks: Ranks) -> Loader:
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
