"""The U-Net's forward pass beside a convolution of PyTorch."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from m3ddm_jax.measure import timing
from m3ddm_jax.measure.program import random_arrays
from m3ddm_jax.models import registry

THREADS = 2
REPEATS = 5


def measure(config: ConfigDict) -> dict[str, Any]:
    """Seconds of one float32 forward of the U-Net: 8 frames of latents 32x32, 4 global frames of 32x32.

    The yardstick, run in turns with it: PyTorch's 3x3 convolution 320 -> 320 on [16, 320, 32, 32].
    """
    hyper = {**config.model, "dtype": "float32", "remat": "none"}
    model = registry.build(**hyper)
    variables = random_arrays(registry.abstract_variables(model))
    shape = (1, 8, 32, 32, hyper["latent_channels"])
    latents = jax.random.normal(jax.random.key(1), shape)
    conditions = {
        "timestep": jnp.array([500.0]),
        "fps": jnp.array([8.0]),
        "global_latents": jax.random.normal(jax.random.key(2), (1, 4, *shape[2:])),
    }
    arguments = (variables, latents, jnp.ones((*shape[:-1], 1)), latents)
    forward = jax.jit(lambda arguments, conditions: model.apply(*arguments, **conditions))
    functions = {"forward": lambda: forward(arguments, conditions)}
    if convolution := _torch_convolution():
        functions["convolution"] = convolution
    times = timing.time_together(functions, REPEATS)
    result = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))}
    for name, time in times.items():
        result |= {f"{name}_seconds": time.median, f"{name}_spread": time.spread}
    if convolution:
        result["forward_in_convolutions"] = times["forward"].median / times["convolution"].median
    else:
        result["note"] = "no yardstick: PyTorch is not installed, or JAX does not run on the CPU"
    return result


def _torch_convolution() -> Callable[[], Any] | None:
    if importlib.util.find_spec("torch") is None or jax.default_backend() != "cpu":
        return None
    import torch

    torch.set_num_threads(THREADS)
    layer = torch.nn.Conv2d(320, 320, 3, padding=1)
    images = torch.randn(16, 320, 32, 32)

    @torch.inference_mode()
    def run():
        layer(images)

    return run
