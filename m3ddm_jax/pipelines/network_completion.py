"""Completes a key frame by an image inpainting network: LaMa, MI-GAN or DeepFill."""

import logging
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import numpy as np

from m3ddm_jax.completion.distance import nearest
from m3ddm_jax.models import registry
from m3ddm_jax.pipelines.compositing import resize
from m3ddm_jax.pipelines.lama_refinement import refine
from m3ddm_jax.pipelines.options import computing_in
from m3ddm_jax.pipelines.propagation import View
from m3ddm_jax.types import Variables

_LOG = logging.getLogger(__name__)

_STEPS = 3  # at most, because errors of one go into the next
_KNOWN = 1 - 1e-4  # share of a scaled pixel
_REFINED_SIDE = 256  # pixels of the short side at the coarsest scale of refinement, about
_AROUND = 128  # pixels that MI-GAN sees on each side of what is unknown, at least
_DEEPFILL_MULTIPLE = 8  # of which sides are

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(frame float32 [h, w, 3] in 0..255, unknown bool [h, w, 1]) -> a frame like it, of which the unknown is used."""


class NetworkCompleter:
    """The `hallucinate` of `propagation.Components` by a network.

    strip: pixels that are completed at a time, from known ones outwards, in _STEPS steps at most; 0 completes all at
    once.
    """

    def __init__(self, predict: Predict, strip: int):
        self._predict, self._strip = predict, strip
        self._reported = False

    def __call__(self, key: View, unknown: np.ndarray, others: Sequence[View] = ()) -> np.ndarray:
        """Returns the whole frame, float32 [h, w, 3] in 0..255. unknown: bool [h, w, 1]."""
        return self.complete(key.frame, unknown)

    def complete(self, frame: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        """`__call__` of a frame alone. Logs a line, once, if no pixel of one is known; it stays as it is."""
        if not unknown.any():
            return frame
        if unknown.all():
            if not self._reported:
                _LOG.warning("completion skipped: no pixel of a key frame is known")
            self._reported = True
            return frame
        distance = nearest(~unknown[..., 0])[2][..., None]
        steps = min(_STEPS, int(np.ceil(distance.max() / self._strip))) if self._strip else 1
        for step in range(1, steps + 1):
            now = unknown & (distance <= distance.max() * step / steps)
            frame = np.where(now, np.clip(self._predict(frame, unknown), 0, 255), frame)
            unknown = unknown & ~now
        return frame


def predictor(module: nn.Module, variables: Variables, refinement: int = 0) -> Predict:
    """What a completion network predicts, in bfloat16 on accelerators if it has the choice.

    refinement: iterations by which LaMa's prediction is refined; 0 refines nothing. Raises ValueError for others.
    """
    kind = registry.describe(module)[0]
    if refinement and kind != "lama":
        raise ValueError(f"the setting refinement is for lama, the completion network is {kind}")
    module = computing_in("float32" if jax.default_backend() == "cpu" else "bfloat16", module)
    variables, apply = jax.device_put(variables), jax.jit(module.apply)

    def run(image: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        return np.asarray(apply(variables, image[None], unknown[None].astype(np.float32)))[0]

    def lama(frame: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        if refinement:
            mask = unknown.astype(np.float32)
            return 255 * refine(module, variables, frame / 255, mask, refinement, _REFINED_SIDE)
        return 255 * run(frame / 255, unknown)

    def migan(frame: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        """What is around the unknown, on a square of the network's size, mirrored along the shorter side."""
        resolution = module.resolution
        box = box_around(unknown[..., 0], resolution, _AROUND)
        made = frame.copy()
        frame, unknown = frame[box], unknown[box]
        sides = frame.shape[:2]
        work = [max(1, round(side * resolution / max(sides))) for side in sides]
        known = np.float32(~unknown)
        share = resize(known[None], *work)[0]
        # What is unknown is not mixed into what is known.
        small = np.where(share > _KNOWN, resize((known * frame)[None], *work)[0], 0)
        fill = [*((0, resolution - side) for side in work), (0, 0)]
        square, hole = (np.pad(x, fill, "symmetric") for x in (small, share <= _KNOWN))
        small = run(square / 127.5 - 1, hole)[: work[0], : work[1]]
        made[box] = 127.5 + 127.5 * resize(small[None], *sides)[0]
        return made

    def deepfill(frame: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        """Its published weights see BGR."""
        bgr, hole = (edge_padded(x[None], _DEEPFILL_MULTIPLE)[0] for x in (frame[..., ::-1] / 127.5 - 1, unknown))
        return 127.5 + 127.5 * run(bgr, hole)[: frame.shape[0], : frame.shape[1], ::-1]

    return {"lama": lama, "migan": migan, "deepfill": deepfill}[kind]


def box_around(unknown: np.ndarray, least: int, around: int) -> tuple[slice, slice]:
    """Rows and columns of a square around what is unknown, cut to the frame, as MI-GAN's authors' pipeline has it.

    unknown: bool [h, w], some of it true. least: side of the square. around: known pixels on each side.
    """
    ends = [np.flatnonzero(unknown.any(axis))[[0, -1]].tolist() for axis in (1, 0)]
    size = max(least, *(last - first + 2 * around for first, last in ends))
    return tuple(_cut(sum(pair) // 2, size, length) for pair, length in zip(ends, unknown.shape, strict=True))


def _cut(centre: int, size: int, length: int) -> slice:
    """About `size` pixels around a centre; what one end lacks is added to the other."""
    low, high = max(0, centre - size // 2), min(length, centre + size // 2)
    rest = max(0, size - (high - low))
    return slice(max(0, low - rest), min(length, high + rest))


def edge_padded(x: np.ndarray, multiple: int) -> np.ndarray:
    """Images [N, H, W, C], continued at their edge to the right and below, up to sides that are multiples."""
    return np.pad(x, [(0, 0), *((0, -side % multiple) for side in x.shape[1:3]), (0, 0)], "edge")
