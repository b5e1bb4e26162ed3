"""Completes an image by copying patches of what is known: sharp, without trained weights.

Sources: energy, scales and votes of Wexler et al. (PAMI 2007) and Newson et al. (SIAM J. Imaging Sciences 2014); search
of PatchMatch (Barnes et al., SIGGRAPH 2009). The start from a smooth continuation, the certainties within a patch and
the cost of rows and columns passed are this project's.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from m3ddm_jax.completion import kernels
from m3ddm_jax.completion.distance import nearest
from m3ddm_jax.completion.membrane import membrane
from m3ddm_jax.completion.scales import (
    Source,
    enlarge,
    layering,
    places_of,
    reduce_known,
    reduce_source,
    stack,
    target_centres,
    usable_centres,
)

_BANDS = 4  # of an image, searched side by side; part of the result, unlike the number of threads
_REACH = 32  # pixels of the widest random jump
_COMPARISONS = 1_000_000  # of patches at the coarsest scale
_CANDIDATES = 64  # of each patch there, at least
_SMALLEST = 1e-20  # weight of a patch, so that no pixel is without a vote


@dataclasses.dataclass(frozen=True)
class PatchSettings:
    """The energy and the search.

    coarsest: pixels of the short side at the coarsest scale, at least. rounds: of search and vote at each scale from
    the coarsest on; the last stands for all scales that follow. fade: factor by which certainty falls per pixel away
    from what may be copied, until `far` pixels. layering: squared grey levels that it costs, per value, to copy from a
    row (left and right of the known) or column (above and below) as far off as the short side. match: grey levels, root
    mean square, at which confidence has fallen to exp(-1/2). detour: parts of the short side by which what may be
    copied is farther than the nearest known pixel where confidence has fallen to 1 / e.
    """

    coarsest: int = 60
    rounds: tuple[int, ...] = (24, 12, 4)
    fade: float = 1.7
    far: float = 30.0
    layering: float = 1800.0
    match: float = 12.0
    detour: float = 0.25


class Completion(NamedTuple):
    """image: float32 [h, w, 3] in the range of the input, known pixels unchanged. confidence: float32 [h, w, 1] in
    0..1, 1 where known, lower where patches match poorly or a known pixel nearby may not be copied. It is a share for
    blending with the smooth continuation."""

    image: np.ndarray
    confidence: np.ndarray


def complete(
    image: np.ndarray,
    mask: np.ndarray,
    *,
    smooth: np.ndarray,
    seed: int,
    allowed: np.ndarray | None = None,
    sources: Sequence[Source] = (),
    settings: PatchSettings | None = None,
) -> Completion:
    """Returns the image with its unknown pixels composed of patches. Deterministic.

    image: [h, w, 3] in 0..255; values under the mask are ignored. mask: uint8 or bool [h, w, 1], 1 = unknown. smooth:
    float32 [h, w, 3], a smooth continuation of the known pixels; the search starts from it, and it is returned with
    confidence 0 where nothing can be copied. allowed: bool [h, w], known pixels that may be copied; None: all known.
    sources: further images to copy from.
    """
    settings = settings or PatchSettings()
    known = np.asarray(mask)[..., 0] == 0
    image = np.where(known[..., None], image, 0).astype(np.float32)
    own = Source(image, known if allowed is None else known & allowed)
    others = [Source(s.image.astype(np.float32), np.asarray(s.allowed, bool), s.row, s.column) for s in sources]
    scales = _scales(_Scale(image, known, own.allowed, [own, *others]), settings.coarsest)
    if not scales:
        kept = np.where(known[..., None], image, smooth).astype(np.float32)
        return Completion(kept, known[..., None].astype(np.float32))
    rng = np.random.default_rng(seed)
    with concurrent.futures.ThreadPoolExecutor(min(_BANDS, os.cpu_count() or 1)) as pool:
        coarse = None
        for depth, scale in enumerate(reversed(scales)):
            search = _Search(scale, settings, rng, pool.map)
            search.start(smooth) if coarse is None else search.start_from(coarse)
            for _ in range(settings.rounds[min(depth, len(settings.rounds) - 1)]):
                search.improve()
            coarse = search
        confidence = search.confidence()
    made = np.clip(search.image(), *_range_of(scales[0].sources))
    return Completion(np.where(known[..., None], image, made), confidence)


class _Scale(NamedTuple):
    """image: float32 [h, w, 3]. known, trusted: bool [h, w], trusted are the known pixels that may be copied. sources:
    what patches are copied from."""

    image: np.ndarray
    known: np.ndarray
    trusted: np.ndarray
    sources: list[Source]

    def halve(self) -> "_Scale":
        image, known = reduce_known(self.image, self.known)
        trusted_image, trusted = reduce_known(self.image, self.trusted)
        image = np.where(trusted[..., None], trusted_image, image)
        return _Scale(image, known, trusted, [reduce_source(source) for source in self.sources])


def _scales(finest: _Scale, coarsest: int) -> list[_Scale]:
    """Scales from fine to coarse, at each of which something is unknown and may be copied; none if there is nothing."""
    scales = [finest]
    while min(scales[-1].known.shape) // 2 >= coarsest:
        scales.append(scales[-1].halve())
    possible = [_is_possible(scale) for scale in scales]
    return scales[: possible.index(False)] if False in possible else scales


def _is_possible(scale: _Scale) -> bool:
    fits = min(scale.known.shape) >= kernels.SIZE
    return fits and not scale.known.all() and any(usable_centres(source.allowed).any() for source in scale.sources)


def _range_of(sources: list[Source]) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest value of each channel that may be copied; bounds the rounding of means."""
    colours = [source.image[source.allowed] for source in sources if source.allowed.any()]
    return np.min([c.min(0) for c in colours], 0), np.max([c.max(0) for c in colours], 0)


class _Search:
    """The estimate of one scale. compute: `map` that may run on several threads."""

    def __init__(self, scale: _Scale, settings: PatchSettings, rng: np.random.Generator, compute: Callable):
        self._scale, self._settings, self._rng, self._compute = scale, settings, rng, compute
        height, width = scale.known.shape
        self.atlas = stack(scale.sources)
        near_rows, near_columns, near = nearest(scale.known)
        # What may not be copied is not to be continued either.
        distance = nearest(scale.trusted)[2] if scale.trusted.any() else near
        self._detour = distance - near
        certainty = np.float32(settings.fade) ** -np.minimum(distance, np.float32(settings.far))
        self.is_target = target_centres(~scale.known)
        total = cv2.boxFilter(certainty, -1, (kernels.SIZE,) * 2, normalize=False, borderType=cv2.BORDER_CONSTANT)
        self._certainty = certainty
        self._level = kernels.Level(
            scale.image.reshape(height, -1).copy(),
            np.repeat(certainty, 3, 1),
            1 / (3 * np.maximum(total, certainty)),
            layering(scale.known, near_rows, near_columns, settings.layering),
            *self.atlas[:5],
        )
        self._targets = places_of(self.is_target)
        self._target_bands = _bands(self._targets)
        self._unknown_bands = _bands(places_of(~scale.known))
        self._step = 1
        self.field = np.zeros((height, width, 2), np.int32)
        self.weight = np.zeros((height, width), np.float32)
        self._cost = np.full((height, width), kernels.NO_TARGET, np.float32)

    def start(self, smooth: np.ndarray):
        """Starts from a smooth continuation of any size."""
        height, width = self._scale.known.shape
        reduced = cv2.resize(smooth, (width, height), interpolation=cv2.INTER_AREA).reshape(height, -1)
        unknown = np.repeat(~self._scale.known, 3, 1)
        self._level.image[unknown] = reduced[unknown]
        centres = places_of(self.atlas.usable)
        most = max(_CANDIDATES, _COMPARISONS // len(self._targets))
        if len(centres) > most:
            centres = centres[np.sort(self._rng.choice(len(centres), most, replace=False))]
        self._each(lambda band: kernels.exhaust(self._level, band, centres, self.field, self._cost))

    def start_from(self, coarse: "_Search"):
        """Starts from the field and weights of half as fine a scale."""
        there = tuple(self._targets.T)
        places, parents = enlarge(coarse.field, coarse.is_target, coarse.atlas, self.atlas, self._targets)
        self.field[there], self.weight[there] = places, coarse.weight[parents]
        self._vote()

    def improve(self):
        """One round: a sweep of the search, then a vote."""
        self._each(lambda band: kernels.evaluate(self._level, band, self.field, self._cost))
        self._step = -self._step
        states = self._rng.integers(1, 2**63, (len(self._target_bands), 1), np.uint64)
        arguments = self.field.copy(), self.field, self._cost, _REACH, self._step
        self._each(functools.partial(_sweep, self._level, arguments), states)
        there = tuple(self._targets.T)
        cost = self._cost[there]
        spread = max(2 * np.percentile(cost, 75), np.float32(1e-3))
        self.weight[there] = np.maximum(self._certainty[there] * np.exp(-cost / spread), _SMALLEST)
        self._vote()

    def image(self) -> np.ndarray:
        """The estimate, float32 [h, w, 3], shifted in colour so that it joins what may be copied without a seam."""
        unknown = ~self._scale.known
        border = self._scale.trusted & cv2.dilate(unknown.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        # What patches propose for known pixels next to the unknown ones, compared with what these are.
        voted = self._level._replace(image=self._level.image.copy())
        kernels.vote(voted, places_of(border), self.field, self.weight)
        made, proposed = (x.image.reshape(self._scale.image.shape) for x in (self._level, voted))
        return made + membrane(self._scale.image - proposed, border, unknown)

    def confidence(self) -> np.ndarray:
        """float32 [h, w, 1] in 0..1, 1 where known: how well the patches over a pixel match, times how much nearer what
        may be copied is than what may not."""
        colours = self._level._replace(layering=np.zeros_like(self._level.layering))
        cost = np.zeros_like(self._cost)
        self._each(lambda band: kernels.evaluate(colours, band, self.field, cost))
        size, targets = (kernels.SIZE,) * 2, self.is_target.astype(np.float32)
        count, total = (cv2.blur(x, size, borderType=cv2.BORDER_CONSTANT) for x in (targets, cost))
        # Every unknown pixel lies in one target patch or more; elsewhere rounding may leave less than nothing.
        mean = np.maximum(total, 0) / np.maximum(count, 0.5 / kernels.SIZE**2)
        matches = np.exp(-mean / (2 * self._settings.match**2))
        tied = np.exp(-self._detour / (self._settings.detour * min(self._scale.known.shape)))
        return np.where(self._scale.known, 1, np.clip(matches * tied, 0, 1)).astype(np.float32)[..., None]

    def _vote(self):
        vote = functools.partial(_vote, self._level, self.field, self.weight)
        list(self._compute(vote, self._unknown_bands))

    def _each(self, function: Callable, *arguments):
        """Calls a function with each band of targets."""
        list(self._compute(function, self._target_bands, *arguments))


def _sweep(level: kernels.Level, arguments: tuple, band: np.ndarray, state: np.ndarray):
    kernels.search(level, band, *arguments, state)


def _vote(level: kernels.Level, field: np.ndarray, weight: np.ndarray, band: np.ndarray):
    kernels.vote(level, band, field, weight)


def _bands(places: np.ndarray) -> list[np.ndarray]:
    """Parts of int32 [n, 2] in reading order, of whole rows and about as many places each; none is empty."""
    rows = places[:, 0]
    wanted = rows[np.arange(1, _BANDS) * len(rows) // _BANDS]
    stops = np.unique(np.searchsorted(rows, wanted))
    return [band for band in np.split(places, stops) if len(band)]
