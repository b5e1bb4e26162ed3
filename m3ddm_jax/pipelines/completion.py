"""Completes a key frame by patches of the source, over the colours of a smooth continuation."""

import logging
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from m3ddm_jax.completion.distance import nearest
from m3ddm_jax.completion.patches import complete
from m3ddm_jax.completion.scales import Source
from m3ddm_jax.pipelines.compositing import Spread
from m3ddm_jax.pipelines.propagation import View
from m3ddm_jax.pipelines.subjects import People, find_moving, find_people, find_singular

_LOG = logging.getLogger(__name__)
_FEWEST = 0.02  # of a frame that may be copied, at least
_BASE = 0.03  # of the short side; what is coarser is the smooth continuation's
_CUT_REACH = 0.15  # of the short side, over which a subject that is cut recedes to 1 / e
_CUT_BLUR = 0.03  # of the short side, along the border
_FADING = 0.05  # power of the confidence that is the patches' share; LPIPS prefers a wrong texture to a blur
_LITTLE = 0.05  # share of a subject that is worth a completion of its own


class PatchCompleter:
    """The `hallucinate` of `propagation.Components` by patches.

    seed: of the search; the same gives the same. base: (frame, unknown pixels) -> a frame whose coarse colours are
    kept; a smooth continuation where it is None.
    """

    def __init__(self, seed: int = 0, base: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None):
        self._seed, self._base = seed, base
        self._reported = False
        self._others: tuple[Sequence[View], list[np.ndarray]] = ((), [])

    def __call__(self, key: View, unknown: np.ndarray, others: Sequence[View] = ()) -> np.ndarray:
        """Returns the whole frame, float32 [h, w, 3] in 0..255. Logs a line, once, where nothing can be copied.

        The background goes on by patches of the background, of this and of other frames. A subject that the border cuts
        goes on a little by itself, then recedes: neither it nor anybody's head appears a second time.
        unknown: bool [h, w, 1].
        """
        if not unknown.any():
            return key.frame
        background, people = _background(key)
        sources = [
            Source(view.frame, allowed, *(key.position - view.position))
            for view, allowed in zip(others, self._backgrounds(others), strict=True)
        ]
        base = self._base(key.frame, unknown) if self._base else Spread(unknown.astype(np.uint8))(key.frame)
        made = self._complete(key.frame, unknown, base, background, sources)
        cut = _cut(unknown, ~background)
        if (unknown & (cut > _LITTLE)).any():
            made += cut * (self._complete(key.frame, unknown, base, key.real & ~people.heads, ()) - made)
        return np.where(unknown, made, key.frame)

    def _backgrounds(self, others: Sequence[View]) -> list[np.ndarray]:
        if others is not self._others[0]:
            self._others = others, [_background(view)[0] for view in others]
        return self._others[1]

    def _complete(
        self,
        frame: np.ndarray,
        unknown: np.ndarray,
        smooth: np.ndarray,
        allowed: np.ndarray,
        sources: Sequence[Source],
    ) -> np.ndarray:
        """The detail of patches over the colours of the smooth continuation, or what stands for it."""
        mask = unknown.astype(np.uint8)
        if max([allowed.mean(), *(source.allowed.mean() for source in sources)]) < _FEWEST:
            return self._give_up(smooth)
        made, confidence = complete(frame, mask, smooth=smooth, seed=self._seed, allowed=allowed, sources=sources)
        if not confidence[unknown].any():
            return self._give_up(smooth)
        made = smooth + confidence**_FADING * (made - smooth)
        sigma = _BASE * min(frame.shape[:2])
        weight = np.maximum(cv2.GaussianBlur(mask.astype(np.float32), (0, 0), sigma)[..., None], 1e-3)
        return made + cv2.GaussianBlur(np.where(unknown, smooth - made, 0), (0, 0), sigma) / weight

    def _give_up(self, smooth: np.ndarray) -> np.ndarray:
        """The smooth continuation or what stands for it, reported once."""
        if not self._reported:
            instead = "it is continued smoothly" if self._base is None else "the network completes it alone"
            _LOG.warning("completion skipped: too little of the source may be copied, %s", instead)
        self._reported = True
        return smooth


def _background(view: View) -> tuple[np.ndarray, People]:
    """Pixels that may be copied anywhere, bool [h, w], and the people of a frame."""
    people = find_people(view.frame, view.real)
    found = view.real & ~people.bodies & ~find_singular(view.frame, view.real)
    if view.flow is not None:
        found &= ~find_moving(view.frame, view.real, view.flow)
    return found, people


def _cut(unknown: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """How far what lies beyond the border belongs to a subject that it cuts, float32 [h, w, 1] in 0..1."""
    rows, columns, distance = nearest(~unknown[..., 0])
    short = min(unknown.shape[:2])
    cut = (subjects & ~unknown[..., 0])[rows, columns].astype(np.float32)
    return (cv2.GaussianBlur(cut, (0, 0), _CUT_BLUR * short) * np.exp(-distance / (_CUT_REACH * short)))[..., None]
