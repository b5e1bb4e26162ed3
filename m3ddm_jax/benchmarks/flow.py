"""ISVI: its flow network, its Poisson solve, and real pixels carried through a whole clip."""

import time
from functools import partial
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m3ddm_jax.flow.least_squares import Edges
from m3ddm_jax.flow.poisson import blend
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.measure import memory, timing
from m3ddm_jax.measure.program import random_arrays
from m3ddm_jax.models import registry
from m3ddm_jax.models.raft import RAFT
from m3ddm_jax.pipelines.isvi import Isvi
from m3ddm_jax.video import FrameSource

THREADS = 2
REPEATS = 5
ITERATIONS = 12
_AT_A_TIME = 4  # frames that are blended together


def measure(height: int = 240, width: int = 432, num_frames: int = 80) -> dict[str, Any]:
    """RAFT on 128 lines beside torchvision's; the blend of a border; a clip whose sides, a sixth each, are filled
    without networks, compilation included."""
    return {
        **compare_raft(RAFT(), height=128, width=160),
        **measure_blend(height, width),
        **measure_clip(height, width, num_frames),
    }


def compare_raft(module: RAFT, *, height: int, width: int) -> dict[str, Any]:
    """All flows of a pair of frames, in turns with torchvision's RAFT, which computes the same by other weights."""
    rng = np.random.default_rng(0)
    images = [jnp.asarray(rng.uniform(0, 255, (1, height, width, 3)), jnp.float32) for _ in range(2)]
    variables = random_arrays(registry.abstract_variables(module))
    forward = jax.jit(partial(module.apply, iterations=ITERATIONS))
    calls = {"RAFT": lambda: forward(variables, *images)}
    if torch_raft := _torch_raft():
        calls["torchvision"] = lambda: torch_raft(*(rearrange(np.asarray(x), "b h w c -> b c h w") for x in images))
    times = timing.time_together(calls, REPEATS)
    result = {f"{name}: seconds": taken.median for name, taken in times.items()}
    ratio = times["RAFT"].median / times["torchvision"].median if torch_raft else "no yardstick: torchvision is missing"
    return result | {"RAFT / torchvision": ratio}


def _torch_raft():
    """torchvision's RAFT on two threads, a function of two images [1, 3, H, W]; None where there is none."""
    try:
        import torch
        from torchvision.models.optical_flow import raft_large
    except (ImportError, RuntimeError):
        return None
    torch.set_num_threads(THREADS)
    network = raft_large().eval()

    def flows(*images):
        with torch.no_grad():
            return network(*(torch.tensor(image) / 127.5 - 1 for image in images), num_flow_updates=ITERATIONS)

    return flows


def measure_blend(height: int, width: int) -> dict[str, float]:
    """Seconds a frame of the Poisson solve whose unknown sides are a sixth of the width each."""
    rng = np.random.default_rng(0)
    frames = jnp.asarray(rng.uniform(0, 255, (_AT_A_TIME, height, width, 3)), jnp.float32)
    mask = jnp.zeros((1, height, width, 1)).at[:, :, : width // 6].set(1).at[:, :, -(width // 6) :].set(1)
    gradients = Edges(*(jnp.asarray(rng.normal(0, 5, frames.shape), jnp.float32) for _ in range(2)))
    taken = timing.time_together({"blend": lambda: blend(frames, mask, gradients)}, REPEATS)["blend"]
    return {"Poisson solve: seconds a frame": taken.median / _AT_A_TIME}


def measure_clip(height: int, width: int, num_frames: int) -> dict[str, float]:
    """The outpainter isvi on a pan over a smooth pattern, two pixels a frame."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 255, (height // 8, (width + 2 * num_frames) // 8, 3)).astype(np.uint8)
    world = cv2.resize(noise, (width + 2 * num_frames, height), interpolation=cv2.INTER_CUBIC)
    side = width // 6
    known = np.stack([world[:, 2 * i + side : 2 * i + width - side] for i in range(num_frames)])
    canvas = Canvas.from_pad(height, known.shape[2], side, 0, side, 0)
    start = time.perf_counter()
    made = sum(len(frames) for frames in Isvi()(FrameSource.from_array(known), canvas))
    seconds = time.perf_counter() - start
    return {"clip: frames": made, "clip: seconds": seconds, "process: peak MiB": memory.peak_rss() / 2**20}
