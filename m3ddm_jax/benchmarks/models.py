"""Every method's network in one table."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from configs import globalpaint_key, globalpaint_key_tiny, m3ddm, m3ddm_embedded, m3ddm_small
from m3ddm_jax.benchmarks import flops
from m3ddm_jax.benchmarks.limits import GIB, reason_to_skip
from m3ddm_jax.measure import timing
from m3ddm_jax.measure.flops import count_flops
from m3ddm_jax.measure.program import compile_program, random_arrays
from m3ddm_jax.models import registry
from m3ddm_jax.models.asfn import ASFN
from m3ddm_jax.models.deepfill import DeepFill
from m3ddm_jax.models.e2fgvi import E2FGVI
from m3ddm_jax.models.igfc import IGFC
from m3ddm_jax.models.raft import RAFT
from m3ddm_jax.pipelines.in2out import In2outSettings
from m3ddm_jax.recipes.base import build_model

REPEATS = 3
TERA = 10**12
_LONG = TERA  # operations of a forward pass from which one is timed: on two cores it takes as long as many shorter ones
_SIZE = (240, 432)  # of 16:9 at 240 lines
_RAFT_ITERATIONS = 20

Window = tuple[str, int, Callable, tuple]
"""What a window shows, how many forward passes it takes, and one of them: a function and the shapes of its arguments,
the first of which are the network's variables."""


def measure(methods: dict[str, Callable[[], Window]] | None = None) -> dict[str, dict[str, Any]]:
    """For each method: parameters, a window, TFLOP, peak memory (XLA's plan for a forward pass) and seconds a window.

    All float32. Nothing of a network is allocated before its memory is known to suffice; what is not run says why.
    Autoencoders, image encoders and what is computed once a video are not in it.
    """
    return {name: _row(*make()) for name, make in (methods or METHODS).items()}


def _row(window: str, passes: int, forward: Callable, arguments: tuple) -> dict[str, Any]:
    operations = count_flops(forward, *arguments).total
    program = compile_program(forward, *arguments)
    seconds = reason_to_skip(program, operations)
    if seconds is None:
        call = partial(program.call, *random_arrays(arguments))
        repeats = 1 if operations > _LONG else REPEATS
        seconds = passes * timing.time_together({"forward": call}, repeats)["forward"].median
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(arguments[0]["params"])),
        "window": window,
        "TFLOP a forward": operations / TERA,
        "forwards a window": passes,
        "TFLOP a window": passes * operations / TERA,
        "peak GiB": program.peak_bytes / GIB,
        "seconds a window": seconds,
    }


def denoiser(config: ConfigDict) -> Window:
    """A diffusion model on a window of its config's sample section."""
    config = config.copy_and_resolve_references()
    config.model.update(dtype="float32", remat="none")
    sample, model = config.sample, build_model(config.model)
    forward, *arguments = flops.branch_of(config, model, registry.abstract_variables(model))
    shown = f"{sample.num_frames} of {sample.lines}x{sample.lines}"
    return shown, flops.branches_a_window(config), forward, tuple(arguments)


def globalpaint(est: str) -> Window:
    """The full GlobalPaint less what `est` leaves out, and less global guidance."""
    config = globalpaint_key.get_config()
    config.model.update(est=est, global_guidance=False)
    config.sample.guidance_global = 1.0
    return denoiser(config)


def e2fgvi(module: E2FGVI, height: int, width: int) -> Window:
    """E2FGVI on a window of the outpainter in2out."""
    settings = In2outSettings()
    num_local = 2 * settings.neighbours + 1
    frames = jax.ShapeDtypeStruct((1, num_local + settings.references, height, width, 3), jnp.float32)
    shown = f"{num_local} of {width}x{height}, {settings.references} references"
    forward = partial(module.apply, num_local=num_local, local_only=True)
    return shown, 1, forward, (registry.abstract_variables(module), frames)


def raft(module: RAFT, height: int, width: int) -> Window:
    """RAFT on two frames."""
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    forward = partial(module.apply, iterations=_RAFT_ITERATIONS, method="flow")
    return f"2 of {width}x{height}", 1, forward, (registry.abstract_variables(module), image, image)


def igfc(module: IGFC, height: int, width: int) -> Window:
    """IGFC on the flows that complete one of them."""
    flows, masks = (jax.ShapeDtypeStruct((1, module.num_frames, height, width, n), jnp.float32) for n in (2, 1))
    shown = f"{module.num_frames} flows of {width}x{height}"
    return shown, 1, module.apply, (registry.abstract_variables(module), flows, masks)


def of_an_image(module: ASFN | DeepFill, passes: int, height: int, width: int) -> Window:
    """ASFN or DeepFill on one frame and its mask."""
    image, mask = (jax.ShapeDtypeStruct((1, height, width, n), jnp.float32) for n in (3, 1))
    return f"1 of {width}x{height}", passes, module.apply, (registry.abstract_variables(module), image, mask)


METHODS: dict[str, Callable[[], Window]] = {
    "M3DDM": lambda: denoiser(m3ddm.get_config()),
    "M3DDM, a quarter as wide": lambda: denoiser(m3ddm_small.get_config()),
    "M3DDM, embedded": lambda: denoiser(m3ddm_embedded.get_config()),
    "GlobalPaint": lambda: denoiser(globalpaint_key.get_config()),
    "GlobalPaint without guidance": partial(globalpaint, "1d+3d"),
    "GlobalPaint, 1-D alone": partial(globalpaint, "1d"),
    "GlobalPaint, frames apart": partial(globalpaint, "off"),
    "GlobalPaint, miniature": lambda: denoiser(globalpaint_key_tiny.get_config()),
    "E2FGVI": lambda: e2fgvi(E2FGVI(), *_SIZE),
    "ISVI, RAFT": lambda: raft(RAFT(), *_SIZE),
    "ISVI, IGFC": lambda: igfc(IGFC(), *_SIZE),
    "ISVI, ASFN": lambda: of_an_image(ASFN(), 2, *_SIZE),  # gradients along x and along y
    "ISVI, DeepFill": lambda: of_an_image(DeepFill(), 1, *_SIZE),
}
