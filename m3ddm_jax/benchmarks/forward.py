"""The U-Net's forward pass beside a convolution of PyTorch."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from m3ddm_jax.benchmarks.flops import abstract_global_latents, branch_of
from m3ddm_jax.measure import timing
from m3ddm_jax.measure.program import random_arrays
from m3ddm_jax.models import registry
from m3ddm_jax.recipes.base import build_model

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


def compare_with_torch(config: ConfigDict) -> dict[str, Any]:
    """Seconds of the config's U-Net on a window of its sample section, next to the same network in PyTorch, in turns,
    in the config's dtype on the same device; and how far apart their results are.

    Raises ValueError for another model, and where PyTorch is missing or cannot use this device.
    """
    if config.model.kind != "m3ddm":
        raise ValueError(f"the model is of kind {config.model.kind}: m3ddm is accepted")
    if importlib.util.find_spec("torch") is None:
        raise ValueError("--compare=torch needs PyTorch, which is not installed: pip install torch")
    import torch

    from m3ddm_jax.benchmarks.torch_m3ddm import PlainM3DDM

    platform = jax.default_backend()
    device = {"cpu": "cpu", "gpu": "cuda"}.get(platform)
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"--compare=torch: PyTorch cannot use this {platform}; a CPU or a GPU of CUDA is accepted")
    model = build_model(config.model)
    shapes = registry.abstract_variables(model)
    _, _, latents, mask, _ = branch_of(config, model, shapes)
    tokens = jax.eval_shape(
        partial(model.apply, method="context_tokens"), shapes, abstract_global_latents(config, model)
    )
    variables, (noisy, masked, mask, context) = random_arrays((shapes, (latents, latents, mask, tokens)))
    timestep, fps = jnp.array([500.0]), jnp.array([8.0])
    forward = jax.jit(partial(model.apply, timestep=timestep, fps=fps))
    dtype = getattr(torch, jnp.dtype(model.dtype).name)
    plain = PlainM3DDM(model, variables, device, dtype)
    given = [
        torch.tensor(np.asarray(x, np.float32), device=device) for x in (noisy, mask, masked, timestep, fps, context)
    ]

    def here() -> jax.Array:
        return forward(variables, noisy, mask, masked, context=context)

    def there() -> torch.Tensor:
        out = plain(*given)
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    times = timing.time_together({"here": here, "PyTorch": lambda: there() is None}, REPEATS)
    expected = there().cpu().numpy()
    result = {f"{name}: seconds": time.median for name, time in times.items()}
    return result | {
        "here / PyTorch": times["here"].median / times["PyTorch"].median,
        "largest difference / largest number": float(
            np.abs(np.asarray(here()) - expected).max() / np.abs(expected).max()
        ),
    }


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
