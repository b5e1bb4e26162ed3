"""Real pixels, carried along flow from the frames that saw a place to those that did not, and how far to trust each.

Source: ISVI (Zhang et al., CVPR 2022) and FGVC (Gao et al., ECCV 2020). Windows that follow one another, and what is
done where no network is given, are this project's: there the key frames are left out, and a blur ends what is open.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m3ddm_jax.flow import propagation
from m3ddm_jax.flow.least_squares import Anchors, Edges
from m3ddm_jax.flow.poisson import blend, gradient_mask, unresolved
from m3ddm_jax.pipelines.compositing import spread
from m3ddm_jax.pipelines.optical_flow import Completer, Estimator, Flows, ShotFlows, camera_motion
from m3ddm_jax.pipelines.work_clip import WorkClip

BYTES_PER_PIXEL = 7 * 4
"""Of what is carried: colour gradients to the right and down, and the confidence."""

_AT_A_TIME = 4  # frames that are blended together
_TOLERANCE = 1e-4  # of blending: fractions of a grey level
_DRIFT = (
    32.0,
    64.0,
)  # levels between a pixel's colour and the one that was carried: from where on and at what it is held
_SPECK = 5e-3  # of a frame; what is left of one is not made up but spread from around it, if it is less
# Few shapes, few compiles:
_LENGTH = 8  # of which windows have a multiple of frames
_STEPS = 16  # in which the pixels that are carried to may grow to all of a frame's


class View(NamedTuple):
    """A frame of a window.

    frame: float32 [h, w, 3] in 0..255. real: bool [h, w], pixels of the source, of this frame or propagated from
    others. flow: float32 [h, w, 2] to a neighbouring frame; None where there is none. position: float32 [2], rows and
    columns by which the scene has moved since the first frame of the window.
    """

    frame: np.ndarray
    real: np.ndarray
    flow: np.ndarray | None
    position: np.ndarray


@dataclasses.dataclass(frozen=True)
class Components:
    """Who does what.

    estimate, complete: flow, as in `optical_flow`.
    hallucinate: (key frame, its unknown pixels, bool [h, w, 1], other frames of the window) -> the whole key frame,
      float32 [h, w, 3] in 0..255.
    fuse: (gradients float32 [n, h, w, 3], of 0..255, in one direction, mask [n, h, w, 1], 1 = carried there) ->
      gradients of one style; or None.
    """

    estimate: Estimator
    complete: Completer
    hallucinate: Callable[[View, np.ndarray, Sequence[View]], np.ndarray]
    fuse: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """window: frames that are seen at once, 3 or more. max_error: pixels by which flow there and back may stray in a
    step. key_frames: of a window, that are hallucinated at most. anchor: how much the colour of a pixel counts that was
    carried surely and drifts, beside its differences to its neighbours; at 0 these alone are carried. cubic: whether
    values between pixels are interpolated by cubics, or linearly."""

    window: int
    max_error: float
    key_frames: int
    anchor: float = 0.0
    cubic: bool = False


def propagate(
    clip: WorkClip, cuts: Sequence[int], parts: Components, limits: Limits
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Fills what the masks of a clip hide, shot by shot, window by window.

    cuts: the first frame of every shot but the first one; nothing is carried across them.
    Yields frames, float32 [n, h, w, 3] in 0..255, known pixels as they were, and how far each pixel is a real one,
    float32 [n, h, w, 1] in 0..1 (1 known, 0 made up), in time order.
    """
    for start, stop in itertools.pairwise([0, *cuts, len(clip)]):
        flows = ShotFlows(clip, range(start, stop), parts.estimate, parts.complete)
        last = None
        for frames, made in plan_propagation_windows(range(start, stop), limits.window):
            flows.forget(frames.start)
            filled, confidence = _Window(clip, frames, last, flows, parts, limits).fill(made)
            last = filled[-1], confidence[-1]
            yield filled, confidence


def plan_propagation_windows(shot: range, size: int) -> Iterator[tuple[range, range]]:
    """Windows of at most `size` frames, 2 or more, and the frames amid each that it makes, in time order.

    A window begins with the last frame that the one before it made, which stands for all that was seen until then, and
    sees as many frames again as it makes.
    """
    start = shot.start
    while start < shot.stop:
        first = max(shot.start, start - 1)
        stop = min(first + size, shot.stop)
        end = stop if stop == shot.stop else stop - (size - 1) // 2
        yield range(first, stop), range(start, end)
        start = end


class _Carried(NamedTuple):
    """State of a window of frames, as long as the next multiple of `_LENGTH`: the frames beyond are known and unused.

    values: gradients to the right and down, and with an anchor colours, float32 [T, h, w, 6 or 9]. missing: which are
    unknown, bool [T, h, w, 1]. confidence: how far each is of a real pixel, float32 [T, h, w, 1].
    """

    values: jax.Array
    missing: jax.Array
    confidence: jax.Array


class _Window:
    """Frames that are filled together. last: the frame before those that are made, and its confidence, if any."""

    def __init__(
        self,
        clip: WorkClip,
        frames: range,
        last: tuple[np.ndarray, np.ndarray] | None,
        flows: ShotFlows,
        parts: Components,
        limits: Limits,
    ):
        shown = [clip.frame(index) for index in frames]
        self._first, self._parts, self._limits = frames.start, parts, limits
        self._frames = np.stack([frame.continued for frame in shown]).astype(np.float32)
        self._hole = np.stack([frame.mask for frame in shown]) > 0
        self._confidence = 1 - self._hole.astype(np.float32)
        self._goes_on = last is not None
        if last is not None:
            self._frames[0], self._confidence[0] = last
            # What was made up is not known, whatever the frame holds.
            self._hole[0] = last[1] == 0
        empty = len(frames) < 2 or not self._hole.any()
        self._flows = None if empty else flows.between(frames)
        self._near = clip.near

    def fill(self, made: range) -> tuple[np.ndarray, np.ndarray]:
        """Frames and confidence, as `propagate` yields them, of those that are made."""
        wanted = slice(made.start - self._first, made.stop - self._first)
        if not self._hole[wanted].any():
            return self._frames[wanted], self._confidence[wanted]
        carried = self._carry(self._start())
        if self._limits.key_frames:
            carried = self._hallucinate(carried)
        frames, confidence = np.empty_like(self._frames[wanted]), np.empty_like(self._confidence[wanted])
        for start in range(0, len(frames), _AT_A_TIME):
            # The last few are moved back rather than cut short.
            first = max(0, min(start, len(frames) - _AT_A_TIME))
            chunk = slice(first, first + _AT_A_TIME)
            there = slice(wanted.start + first, min(wanted.start + first + _AT_A_TIME, wanted.stop))
            frames[chunk], confidence[chunk] = self._finish(there, carried)
        return frames, confidence

    def _start(self) -> _Carried:
        """The state before anything is propagated."""
        length = len(self._frames) + self._beyond
        values = np.zeros((length, *self._frames.shape[1:3], 9 if self._limits.anchor else 6), np.float32)
        for frame, target in zip(self._frames, values, strict=False):
            _write_values(frame, target)
        fill = [(0, self._beyond), (0, 0), (0, 0), (0, 0)]
        hole, confidence = np.pad(self._hole, fill), np.pad(self._confidence, fill)
        return _Carried(jnp.asarray(values), gradient_mask(hole), jnp.asarray(confidence))

    @property
    def _beyond(self) -> int:
        """Frames by which a window is lengthened, so that few programs are compiled."""
        return 0 if self._flows is None else -len(self._frames) % _LENGTH

    @functools.cached_property
    def _padded_flows(self) -> Flows:
        # Flow that is no number leads nowhere.
        fill = [(0, self._beyond), (0, 0), (0, 0), (0, 0)]
        return Flows(*(jnp.asarray(np.pad(flow, fill, constant_values=np.nan)) for flow in self._flows))

    @functools.cached_property
    def _places(self) -> np.ndarray:
        return _places(np.asarray(gradient_mask(self._hole)))

    def _carry(self, carried: _Carried) -> _Carried:
        """The state with what flow leads to. The argument must not be used afterwards."""
        if self._flows is None:
            return carried
        return _carry(carried, self._padded_flows, self._limits.max_error, self._places, self._limits.cubic)

    def _hallucinate(self, carried: _Carried) -> _Carried:
        """Makes up what is left of the frame that lacks most, carries it to the others, and so on."""
        mask = np.pad(self._hole, [(0, self._beyond), (0, 0), (0, 0), (0, 0)])
        for count in range(self._limits.key_frames):
            mask = np.array(unresolved(mask, carried.missing))
            lacking = mask.mean((1, 2, 3))
            if lacking.max() < _SPECK:
                break
            goes_on = count == 0 and self._goes_on and lacking[0] > 0
            key = 0 if goes_on else int(np.argmax(lacking))
            frame = self._frames[0] if goes_on else self._make_up(key, carried)
            values = np.zeros(carried.values.shape[1:], np.float32)
            _write_values(frame, values)
            made = mask[key].copy()
            mask[key] = False
            carried = self._carry(_insert(carried, key, values, made, gradient_mask(mask)))
        return carried

    def _make_up(self, key: int, carried: _Carried) -> np.ndarray:
        """A whole frame: what was carried to it, and what is made up of the rest."""
        there = slice(key, key + 1)
        blended, lost = self._blend(there, carried, np.asarray(carried.values[there]))
        real = (np.asarray(carried.confidence[key]) > 0) & ~lost[0]
        view = View(blended[0], real[..., 0], self._flow_of(key), self._positions[key])
        return self._parts.hallucinate(view, lost[0], self._others)

    def _flow_of(self, index: int) -> np.ndarray | None:
        if self._flows is None:
            return None
        return self._flows.forward[index] if index < len(self._flows.forward) else self._flows.backward[index - 1]

    @functools.cached_property
    def _positions(self) -> np.ndarray:
        """Of the scene in every frame, float32 [T, 2]."""
        moved = np.zeros((len(self._frames), 2), np.float32)
        if self._flows is not None:
            known = ~self._hole[:-1, ..., 0]
            motions = map(camera_motion, self._flows.forward, known)
            moved[1:] = np.cumsum([motion.mean((0, 1))[::-1] for motion in motions], 0)
        return moved

    @functools.cached_property
    def _others(self) -> tuple[View, ...]:
        """The ends of the window, which show most that a key frame does not."""
        ends = sorted({0, len(self._frames) - 1})
        views = ((self._frames[i], self._confidence[i, ..., 0] > 0, self._flow_of(i), self._positions[i]) for i in ends)
        return tuple(View(*view) for view in views)

    def _finish(self, there: slice, carried: _Carried) -> tuple[np.ndarray, np.ndarray]:
        hole, values = self._hole[there], np.asarray(carried.values[there])
        if self._parts.fuse:
            fused = [self._parts.fuse(values[..., i : i + 3], hole.astype(np.float32)) for i in (0, 3)]
            values = np.where(hole, np.concatenate([*fused, values[..., 6:]], -1), values)
        blended, lost = self._blend(there, carried, values)
        filled = [spread(frame[None], holes.astype(np.uint8))[0] for frame, holes in zip(blended, lost, strict=True)]
        return np.stack(filled), np.where(hole, np.asarray(carried.confidence[there]) * ~lost, 1)

    def _blend(self, there: slice, carried: _Carried, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `_blend`, of the frames that are there."""
        missing, held = np.asarray(carried.missing[there]), self._limits.anchor * np.asarray(carried.confidence[there])
        return _blend(self._frames[there], self._hole[there], values, missing, held, self._near)


def _write_values(frame: np.ndarray, target: np.ndarray) -> None:
    """Writes differences of a frame [h, w, 3] to the right and down, 0 at the end, and its colours if there is room:
    [h, w, 6 or 9]."""
    np.subtract(frame[:, 1:], frame[:, :-1], out=target[:, :-1, :3])
    np.subtract(frame[1:], frame[:-1], out=target[:-1, :, 3:6])
    target[:, -1, :3], target[-1, :, 3:6] = 0, 0
    if target.shape[-1] > 6:
        target[..., 6:] = frame


@functools.partial(jax.jit, donate_argnums=0, static_argnames="cubic")
def _carry(carried: _Carried, flows: Flows, max_error: float, places: jax.Array, cubic: bool) -> _Carried:
    """The state with what flow leads to, as `flow.propagation.propagate` finds it."""
    clip, forward, backward = jax.tree.map(lambda x: x[None], (carried, *flows))
    limits = (max_error, clip.confidence, places)
    done = propagation.propagate_values(clip.values, clip.missing, forward, backward, *limits, cubic=cubic)
    values, missing, confidence = (x[0] for x in done)
    # No differences arrive at the last row and column, where they end: the neighbouring ones are used.
    for last, beside in ((np.s_[:, -1], np.s_[:, -2]), (np.s_[:, :, -1], np.s_[:, :, -2])):
        values, confidence = (
            part.at[last].set(jnp.where(missing[last], part[beside], part[last])) for part in (values, confidence)
        )
        missing = missing.at[last].set(missing[last] & missing[beside])
    return _Carried(values, missing, confidence)


@functools.partial(jax.jit, donate_argnums=0)
def _insert(carried: _Carried, key: int, values: jax.Array, made: jax.Array, missing: jax.Array) -> _Carried:
    """The state with the values of one frame, whose pixels that were made up, bool [h, w, 1], have no confidence."""
    confidence = carried.confidence.at[key].multiply(~made)
    return _Carried(carried.values.at[key].set(values), missing, confidence)


def _places(missing: np.ndarray) -> np.ndarray:
    """The pixels, counted row by row, that any frame lacks, bool [T, h, w, 1]; some twice, so that numbers are few."""
    lacking = missing.any(0).ravel()
    places = np.flatnonzero(lacking).astype(np.int32)
    return np.pad(places, (0, -len(places) % -(-lacking.size // _STEPS)), "edge")


def _blend(
    frames: np.ndarray,
    hole: np.ndarray,
    values: np.ndarray,
    missing: np.ndarray,
    held: np.ndarray,
    near: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Frames with the gradients in the hole, and where these do not lead from what is known: bool [n, h, w, 1].

    values: gradients, and maybe colours, by which pixels are held that would drift far from them. held: how much,
    [n, h, w, 1]. near: rows and columns with a part in it; what is known, and all beside it, needs none.
    """
    blended, lost = frames.copy(), np.zeros_like(hole)
    cells = np.ix_(range(len(frames)), *near)
    frames, hole, values, missing, held = (x[cells] for x in (frames, hole, values, missing, held))
    # What is lost is left out, as nothing holds it fast: such islands cost many times what the rest does.
    missing = missing | gradient_mask(unresolved(hole, missing))
    right, down, colours = np.split(values, (3, 6), -1)
    wanted = frames, hole, Edges(right, down), missing, _TOLERANCE
    if colours.size:
        free = np.asarray(blend(*wanted, Anchors(colours, np.zeros_like(held))))
        drift = (np.abs(free - colours).max(-1, keepdims=True) - _DRIFT[0]) / (_DRIFT[1] - _DRIFT[0])
        held = held * ~missing * np.clip(drift, 0, 1)
        made = blend(*wanted, Anchors(colours, held)) if held.any() else free
    else:
        made = blend(*wanted)
    blended[cells] = np.clip(made, 0, 255)
    # With it go the differences beside it, and what only they held.
    lost[cells] = unresolved(hole, missing)
    return blended, lost
