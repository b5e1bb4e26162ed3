"""Families of training: what is trained, on what, and how it is shown and exported."""

from ml_collections import ConfigDict

from m3ddm_jax.recipes.adversarial import AdversarialRecipe
from m3ddm_jax.recipes.base import Recipe
from m3ddm_jax.recipes.diffusion import DiffusionRecipe
from m3ddm_jax.recipes.flow import FlowRecipe
from m3ddm_jax.recipes.style import StyleRecipe

__all__ = ["RECIPES", "Recipe", "make_recipe"]

RECIPES: dict[str, type[Recipe]] = {
    "adversarial": AdversarialRecipe,
    "diffusion": DiffusionRecipe,
    "flow": FlowRecipe,
    "style": StyleRecipe,
}
"""What a config's `recipe` may be -> the class that takes the config."""


def make_recipe(config: ConfigDict) -> Recipe:
    """The recipe that a config names, made from the config. Raises ValueError where there is none of that name, or the
    config does not fit it."""
    name = config.get("recipe")
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is unknown: one of {', '.join(sorted(RECIPES))} is accepted")
    return RECIPES[name](config)
