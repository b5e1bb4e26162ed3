"""Adaptation to the very video that is to be extended: known parts of it are hidden as the task hides the unknown, and
a small network learns what is amiss in what is made of them.

That a model learns from the source alone before it extends it is MOTIA's idea (Wang et al., Be-Your-Outpainter, ECCV
2024); how is this project's.
"""

import functools
import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import trange

from m3ddm_jax.files.writing import recover
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models import registry
from m3ddm_jax.models.residual_unet import ResidualUNet
from m3ddm_jax.pipelines.compositing import resize
from m3ddm_jax.pipelines.work_canvas import WorkCanvas
from m3ddm_jax.types import FramesTHWC, Variables
from m3ddm_jax.video import FrameSource
from m3ddm_jax.weights import load_model, load_settings, save_model

_LOG = logging.getLogger(__name__)
_FEWEST = 8  # frames of a shot that something is learnt from
_LINES = 64  # shorter side of what the network sees
_SPAN, _EVERY = 32, 2  # frames of a task, and of which every so many is an example
_TASKS = ((1.0, 0.0), (1.0, 1.0), (0.85, 0.5))  # zoom, and where between the first and the last place
_LEAST_SCALE = 0.5  # of a task: what is smaller shows other things than what is to be made
NEEDED = (
    f"a shot of {_FEWEST} frames, and a source that has {_LEAST_SCALE:.0%} of the canvas's height and width, are needed"
)
"""What a source must have to be adapted to, in words."""

_BATCH = 8
_LEARNING_RATE = 1e-3
_ROUNDED = 0.1  # of pixels in -1..1: errors below it count by their square
_TRUSTED = 0.5  # of the network at most: what is held back lies nearer to what is learnt than what is to be made does
_HELD_BACK = (0.4, 0.6)  # strip of the source that nothing is learnt from, as parts of a side
_RAMP = 1 / 32  # of the canvas's short side: from what is known to the full correction


class Made(NamedTuple):
    """A frame of a canvas as it is made without adaptation, all float32 in 0..255: frame, what carrying and blurring
    give of it [H, W, 3], and how far each pixel is a real one, [H, W, 1] in 0..1 (1 known, 0 made up)."""

    frame: np.ndarray
    carried: np.ndarray
    blurred: np.ndarray
    trust: np.ndarray


Make = Callable[[FrameSource, Canvas], Iterator[Made]]
"""What is adapted: makes every frame of a canvas, in time order."""


class Examples(NamedTuple):
    """N frames, small: evidence float32 [N, h, w, 8], what is to be added to them [N, h, w, 3] in units of 127.5,
    where it is learnt and where it is held back, [N, h, w, 1] each."""

    evidence: np.ndarray
    missing: np.ndarray
    learnt: np.ndarray
    held_back: np.ndarray


class Correction:
    """What adaptation adds to the frames of a canvas. share: how far the network is trusted."""

    def __init__(self, network: ResidualUNet, variables: Variables, share: float, canvas: Canvas):
        self.share = share
        self._network, self._variables, self._canvas = network, jax.device_put(variables), canvas
        self._work = _work(canvas, network)
        distance = cv2.distanceTransform(canvas.mask(), cv2.DIST_L2, 5)
        self._ramp = np.minimum(distance / (_RAMP * min(canvas.height, canvas.width)), 1)[..., None]

    def __call__(self, made: Made) -> np.ndarray:
        """float32 [H, W, 3], to be added to the frame; 0 where it is known."""
        if not self.share:
            return np.zeros_like(made.frame)
        evidence = _evidence(made, self._canvas, self._work)[None]
        added = np.asarray(_apply(self._network, self._variables, evidence))
        grown = resize(added, self._canvas.height, self._canvas.width)[0]
        return 127.5 * self.share * self._ramp * grown


class Adapter:
    """Adapts to shots of sources.

    make: what is adapted, with `settings` that tell it from others. steps: updates of the network. cache: folder where
    networks are found again by the frames that they learnt from; None: none is kept. network: the one that
    learns, if not the usual one.
    """

    def __init__(
        self,
        make: Make,
        steps: int,
        cache: str | os.PathLike | None,
        *,
        settings: Any = None,
        network: ResidualUNet | None = None,
    ):
        self._make, self._steps, self._settings = make, steps, settings
        self._cache = None if cache is None else Path(cache).expanduser()
        self._network = network or ResidualUNet()
        self._optimizer = optax.adam(_LEARNING_RATE)
        self._update = jax.jit(self._updated, donate_argnums=(0, 1))
        self._products = jax.jit(self._agreement)

    def __call__(self, source: FrameSource, shot: range, canvas: Canvas) -> Correction | None:
        """The correction of a shot's frames; None where too little is known of them to hide as much again."""
        tasks = plan_tasks(canvas)
        if len(shot) < _FEWEST or not tasks:
            return None
        frames = [source[span.start : span.stop] for span in _spans(shot, len(tasks))]
        folder = self._cache and self._cache / self._name(frames, canvas)
        if folder and (cached := self._cached(folder, canvas)):
            return cached
        examples = self._examples(frames, tasks, canvas)
        variables = self._learn(examples)
        share = self._share(variables, examples)
        if folder:
            try:
                save_model(folder, self._network, variables, settings={"share": share, "steps": self._steps})
            except OSError as error:
                _LOG.warning("what was learnt is not kept: %s", error)
        return Correction(self._network, variables, share, canvas)

    def _cached(self, folder: Path, canvas: Canvas) -> Correction | None:
        """The cached correction; None where there is none, or where it is damaged, logged in one line."""
        recover(folder)
        if not folder.exists():
            return None
        try:
            network, variables = load_model(folder)
            share = load_settings(folder).get("share")
            if network != self._network or type(share) is not float or not 0 <= share <= _TRUSTED:
                raise ValueError(f"{folder} holds another network, or the share {share!r:.100}")
        except ValueError as error:
            _LOG.warning("a damaged cache entry is passed over: %s", error)
            return None
        return Correction(network, variables, share, canvas)

    def _name(self, frames: list[FramesTHWC], canvas: Canvas) -> str:
        """Tells what is learnt from what: these frames, hidden for this canvas, in so many updates."""
        digest = hashlib.sha256(repr((canvas, self._steps, self._settings, self._network)).encode())
        for part in frames:
            digest.update(np.ascontiguousarray(part))
        return digest.hexdigest()

    def _examples(self, frames: list[FramesTHWC], tasks: list["Task"], canvas: Canvas) -> Examples:
        work, parts = _work(canvas, self._network), []
        for shown, task in zip(frames, tasks, strict=True):
            truth = shown[:, *task.box]
            known = FrameSource.from_array(np.ascontiguousarray(truth[:, *task.canvas.box]))
            held_back = _held_back(shown.shape[1:3], canvas)[task.box]
            made = itertools.islice(self._make(known, task.canvas), None, None, _EVERY)
            parts += [
                _example(part, target, task.canvas, work, held_back)
                for part, target in zip(made, truth[::_EVERY], strict=True)
            ]
        return Examples(*map(np.stack, zip(*parts, strict=True)))

    def _learn(self, examples: Examples) -> Variables:
        rng = np.random.default_rng(0)
        variables = registry.init(self._network, jax.random.key(0))
        state = self._optimizer.init(variables)
        with trange(self._steps, desc="adaptation", unit="step", leave=False, disable=None) as progress:
            for _ in progress:
                chosen = rng.integers(len(examples.missing), size=_BATCH)
                flipped = rng.random((_BATCH, 1, 1, 1)) < 0.5
                batch = Examples(*(np.where(flipped, x[chosen][:, :, ::-1], x[chosen]) for x in examples))
                variables, state = self._update(variables, state, batch)
        return jax.device_get(variables)

    def _updated(self, variables: Variables, state: Any, batch: Examples) -> tuple[Variables, Any]:
        gradients = jax.grad(lambda variables: _loss(self._network.apply(variables, batch.evidence), batch))(variables)
        updates, state = self._optimizer.update(gradients, state, variables)
        return optax.apply_updates(variables, updates), state

    def _share(self, variables: Variables, examples: Examples) -> float:
        """The share of the corrections that makes the squared error in the strips held back least, a half at most."""
        products = np.zeros(2)
        for start in range(0, len(examples.missing), _BATCH):
            chosen = np.arange(start, start + _BATCH) % len(examples.missing)  # one shape, whatever their number
            products += np.asarray(self._products(variables, Examples(*(x[chosen] for x in examples))))
        return float(np.clip(products[0] / max(products[1], 1e-9), 0, _TRUSTED))

    def _agreement(self, variables: Variables, batch: Examples) -> jax.Array:
        added = self._network.apply(variables, batch.evidence) * batch.held_back
        return jnp.stack([jnp.sum(added * batch.missing), jnp.sum(jnp.square(added))])


@functools.partial(jax.jit, static_argnums=0)
def _apply(network: ResidualUNet, variables: Variables, evidence: jax.Array) -> jax.Array:
    return network.apply(variables, evidence)


class Task(NamedTuple):
    """A part of the source, rows and columns, that is hidden and made again as a canvas of its own."""

    box: tuple[slice, slice]
    canvas: Canvas


def plan_tasks(canvas: Canvas) -> list[Task]:
    """Parts of the source that have the canvas's shape, the source's place on them being what is shown; none where the
    source is less than half as large as the canvas, either way."""
    height, width = canvas.source_height, canvas.source_width
    largest = min(height / canvas.height, width / canvas.width)
    if largest < _LEAST_SCALE or largest == 1:
        return []
    tasks = []
    for zoom, place in _TASKS:
        scale = zoom * largest
        sides = [2 * max(1, int(scale * side / 2)) for side in (canvas.height, canvas.width)]
        shown = [min(side, max(1, round(scale * part))) for side, part in zip(sides, (height, width), strict=True)]
        offsets = [
            min(side - part, round(scale * offset))
            for side, part, offset in zip(sides, shown, (canvas.top, canvas.left), strict=True)
        ]
        starts = [int(place * (whole - side)) for whole, side in zip((height, width), sides, strict=True)]
        rows, columns = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
        tasks.append(Task((rows, columns), Canvas(*sides, *shown, *offsets)))
    return tasks


def _spans(shot: range, count: int) -> list[range]:
    """As many parts of a shot, from its start to its end."""
    length = min(len(shot), _SPAN)
    starts = np.linspace(shot.start, shot.stop - length, count).astype(int)
    return [range(start, start + length) for start in starts.tolist()]


def _held_back(shape: tuple[int, int], canvas: Canvas) -> np.ndarray:
    """The strip of the source that nothing is learnt from, across what is hidden: float32 [h, w, 1], 1 in it."""
    strip = np.zeros((*shape, 1), np.float32)
    wider = canvas.width - canvas.source_width >= canvas.height - canvas.source_height
    axis = 0 if wider else 1
    inside = slice(*(round(part * shape[axis]) for part in _HELD_BACK))
    strip[(inside,) if wider else (slice(None), inside)] = 1
    return strip


def _example(
    made: Made, truth: np.ndarray, canvas: Canvas, work: WorkCanvas, held_back: np.ndarray
) -> tuple[np.ndarray, ...]:
    """One of `Examples`. truth: uint8 [H, W, 3]. held_back: [H, W, 1], 1 in the strip."""
    missing, held, hidden = (_reduced(x, work) for x in ((truth - made.frame) / 127.5, held_back, canvas.mask()))
    return _evidence(made, canvas, work), missing, hidden * (1 - held), hidden * held


def _evidence(made: Made, canvas: Canvas, work: WorkCanvas) -> np.ndarray:
    """What the network sees: the frame, what carrying and blurring make different, trust and mask, [h, w, 8]."""
    parts = (made.frame / 127.5 - 1, (made.carried - made.blurred) / 127.5, 2 * made.trust - 1, 2.0 * canvas.mask() - 1)
    return np.concatenate([_reduced(part, work) for part in parts], axis=-1)


def _reduced(picture: np.ndarray, work: WorkCanvas) -> np.ndarray:
    return resize(np.asarray(picture, np.float32)[None], work.height, work.width)[0]


def _loss(added: jax.Array, batch: Examples) -> jax.Array:
    error = jnp.sqrt(jnp.square((added - batch.missing) * batch.learnt) + _ROUNDED**2) - _ROUNDED
    return jnp.sum(error) / jnp.maximum(jnp.sum(batch.learnt), 1)


def _work(canvas: Canvas, network: ResidualUNet) -> WorkCanvas:
    return WorkCanvas(canvas, _LINES, network.multiple)
