"""Model folders, and other people's checkpoints turned into them."""

from m3ddm_jax.weights.hub import resolve
from m3ddm_jax.weights.store import (
    held_kinds,
    load_autoencoder,
    load_image_encoder,
    load_model,
    load_settings,
    save_model,
)

__all__ = [
    "held_kinds",
    "load_autoencoder",
    "load_image_encoder",
    "load_model",
    "load_settings",
    "resolve",
    "save_model",
]
