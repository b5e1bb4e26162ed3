"""When each frame is shown, on one clock that begins with the first frame."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from m3ddm_jax.video.clock import TAIL, Clock, Piece
from m3ddm_jax.video.probe import CLOCKS_JUMP, LONGEST_GAP, Probe

DEFAULT_FPS = 24.0
SLOWEST, FASTEST = 1e-3, 1e5  # frames per second


@dataclasses.dataclass(frozen=True)
class Timeline:
    """When frames are shown.

    timestamps: seconds [n] from the first frame on. durations: seconds [n] for which each frame is shown. fps: frames
    per second, the mean where they come at no constant rate. clock: from the file's clock to this one.
    """

    timestamps: np.ndarray
    durations: np.ndarray
    fps: float
    clock: Clock


def check_rate(what: str, fps: float) -> None:
    """Raises ValueError for a rate at which no video comes."""
    if not SLOWEST <= fps <= FASTEST:
        raise ValueError(f"{what} must be {SLOWEST:g} to {FASTEST:g} frames per second, found {fps:g}")


def timeline_of(probe: Probe, times: Sequence[int | None], durations: Sequence[int]) -> Timeline:
    """The timeline of frames in display order; times and durations in ticks, times None where they are not known."""
    tick, rate = float(probe.tick), next(iter(probe.rates), DEFAULT_FPS)
    lengths = np.array(durations, float) * tick
    lengths = np.where(lengths > 0, lengths, 1 / rate)
    known = _fill(probe.start, np.array([np.nan if time is None else time for time in times]) * tick, lengths)
    if probe.end is not None:
        left = probe.end - known[-1]
        lengths[-1] = left if left > 0 else 1 / rate
    steps = np.diff(known)
    jumps = steps <= 0
    if probe.format in CLOCKS_JUMP:
        jumps |= steps > LONGEST_GAP
    timestamps = known - known[0]
    if jumps.any():
        timestamps = np.concatenate([[0.0], np.cumsum(np.where(jumps, lengths[:-1], steps))])
    clock = _clock(probe, known, timestamps, lengths, np.flatnonzero(jumps) + 1)
    steady = _steady_rate(probe, timestamps, tick)
    if steady:
        timestamps = np.arange(len(times)) / steady
        lengths = np.where(np.abs(lengths - 1 / steady) <= _nearness(tick), 1 / steady, lengths)
    length = timestamps[-1]
    mean = (len(times) - 1) / length if length > 0 else rate
    check_rate(f"{probe.name} has a rate that", steady or mean)
    return Timeline(timestamps, np.append(np.diff(timestamps), lengths[-1]), steady or mean, clock)


def _fill(start: float, known: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Times of all frames: one that is not known follows on the frame before."""
    for index in np.flatnonzero(np.isnan(known)).tolist():
        known[index] = known[index - 1] + lengths[index - 1] if index else start
    return known


def _nearness(tick: float) -> float:
    return 1.01 * max(tick, 0.001)


def _steady_rate(probe: Probe, timestamps: np.ndarray, tick: float) -> float | None:
    """The constant rate that explains the timestamps to a tick, if one does."""
    for rate in probe.rates or (DEFAULT_FPS,):
        if np.abs(timestamps - np.arange(len(timestamps)) / rate).max() <= _nearness(tick):
            return rate
    return None


def _clock(probe: Probe, known: np.ndarray, timestamps: np.ndarray, lengths: np.ndarray, starts: np.ndarray) -> Clock:
    borders = [0, *starts.tolist(), len(known)]
    places = _positions(probe, len(borders) - 1)
    pieces = []
    for number, (first, last) in enumerate(zip(borders[:-1], borders[1:], strict=True)):
        end = known[last - 1] + lengths[last - 1]
        pieces.append(Piece(*map(float, (known[first], end, timestamps[first] - known[first])), *places[number]))
    return Clock(tuple(pieces))


def _positions(probe: Probe, count: int) -> list[tuple[int, int]]:
    """Bytes at which each of `count` pieces begins, and its tail; zeros where the packets do not show as many."""
    packets = probe.packets
    stamps = [pts if dts is None else dts for pts, dts in zip(packets.pts, packets.dts, strict=True)]
    unknown = [(0, 0)] * count
    if count == 1 or None in stamps or None in packets.positions:
        return unknown
    times = np.array(stamps) * float(probe.tick)
    steps = np.diff(times)
    borders = [0, *(np.flatnonzero((steps <= 0) | (steps > LONGEST_GAP)) + 1).tolist(), len(times)]
    if len(borders) != count + 1:
        return unknown
    places = []
    for first, last in zip(borders[:-1], borders[1:], strict=True):
        tail = first + int(np.argmax(times[first:last] >= times[last - 1] - TAIL))
        places.append((packets.positions[first], packets.positions[tail]))
    return places
