"""An outpainter that fills with what other frames saw: frames are registered by similarities and laid side by side."""

from collections.abc import Iterator

import cv2
import numpy as np

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.compositing import match_seam, spread
from m3ddm_jax.video import FrameSource

CHUNK = 8  # frames that are registered at a time
TRACKING_SIDE = 640  # pixels on the long side of the frames that are tracked
MIN_TRACKS = 12
MIN_INLIERS = 0.3  # of the tracks; below that two frames show different scenes
DONOR_STEP = 4  # every so many frames one may give pixels: neighbours then use the same ones and nothing flickers
MAX_REACH = 96  # frames before and after, from which pixels are taken
BUFFER_BYTES = 384 << 20
FEATHER = 16  # pixels over which a donor fades out towards its edge
EDGE = 2  # pixels at the edge of a frame that are never used: many cameras darken them
MIN_NEW = 0.002  # of the canvas; a donor that brings less is passed over
COVER_SCALE = 8  # canvas pixels a cell of the coverage count
TRUST, DISTRUST = 8, 18  # mean difference in the overlap of frame and donor, 0..255: fully used below, not used above


class Mosaic:
    """Fills from the frame nearest in time that saw the place; the rest is the blur baseline."""

    def __call__(self, source: FrameSource, canvas: Canvas, rng: None = None) -> Iterator[np.ndarray]:
        """Yields canvas frames, uint8 [1,H,W,3]; holds the frames that lie within reach."""
        frame_bytes = source.height * source.width * 3
        # all frames ahead are held, and every DONOR_STEP-th behind
        reach = int(min(MAX_REACH, BUFFER_BYTES // (frame_bytes * (1 + 1 / DONOR_STEP))))
        places, scenes = register(source)
        opacity = _opacity(source.height, source.width)
        held: dict[int, np.ndarray] = {}
        for index in range(len(source)):
            ahead = min(len(source), index + reach + 1)
            first = max(held, default=-1) + 1
            held.update(zip(range(first, ahead), source[first:ahead], strict=True))
            for old in [k for k in held if k < index - reach or (k < index and k % DONOR_STEP)]:
                del held[old]
            donors = _choose_donors(index, held.keys(), places, scenes, canvas)
            layers = [(held[donor], _to_canvas(places, donor, index, canvas)) for donor in donors]
            yield _compose(held[index], layers, opacity, canvas)[None]


def register(source: FrameSource) -> tuple[np.ndarray, np.ndarray]:
    """Where each frame lies in its scene.

    Returns float64 [n,3,3], a similarity from pixels of the frame to those of the first frame of its scene, and int
    [n], which scene: a new one begins where a frame cannot be registered to the one before.
    """
    places, scenes = [np.eye(3)], [0]
    scale = min(1.0, TRACKING_SIDE / max(source.height, source.width))
    size = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
    shrink = np.diag([size[0] / source.width, size[1] / source.height, 1.0])
    before = None
    for start in range(0, len(source), CHUNK):
        for frame in source[start : start + CHUNK]:
            grey = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
            if before is not None:
                motion = _similarity(grey, before)
                if motion is None:
                    places.append(np.eye(3))
                    scenes.append(scenes[-1] + 1)
                else:
                    places.append(places[-1] @ np.linalg.inv(shrink) @ motion @ shrink)
                    scenes.append(scenes[-1])
            before = grey
    return np.stack(places), np.array(scenes)


def _similarity(grey: np.ndarray, before: np.ndarray) -> np.ndarray | None:
    """Similarity [3,3] from pixels of one frame to those of the one before, by tracked corners and RANSAC; or None."""
    corners = cv2.goodFeaturesToTrack(before, 600, 0.005, 7)
    if corners is None or len(corners) < MIN_TRACKS:
        return None
    window = {"winSize": (21, 21), "maxLevel": 4}
    tracked, found, _ = cv2.calcOpticalFlowPyrLK(before, grey, corners, None, **window)
    returned, found_back, _ = cv2.calcOpticalFlowPyrLK(grey, before, tracked, None, **window)
    strayed = np.linalg.norm(returned - corners, axis=-1)
    good = ((found == 1) & (found_back == 1) & (strayed < 0.7)).ravel()
    if good.sum() < MIN_TRACKS:
        return None
    motion, inliers = cv2.estimateAffinePartial2D(
        tracked[good], corners[good], method=cv2.RANSAC, ransacReprojThreshold=1.0, maxIters=2000, confidence=0.999
    )
    if motion is None or inliers.sum() < max(MIN_TRACKS, MIN_INLIERS * good.sum()):
        return None
    return np.vstack([motion, [0, 0, 1]])


def _to_canvas(places: np.ndarray, donor: int, index: int, canvas: Canvas) -> np.ndarray:
    """Similarity [3,3] from pixels of the donor to canvas pixels of another frame of its scene."""
    shift = np.array([[1, 0, canvas.left], [0, 1, canvas.top], [0, 0, 1]], np.float64)
    return shift @ np.linalg.inv(places[index]) @ places[donor]


def _choose_donors(index, held, places: np.ndarray, scenes: np.ndarray, canvas: Canvas) -> list[int]:
    """Frames that together cover most of the canvas, nearest in time first."""
    height, width = -(-canvas.height // COVER_SCALE), -(-canvas.width // COVER_SCALE)
    covered = np.zeros((height, width), np.uint8)
    covered[tuple(slice(box.start // COVER_SCALE, -(-box.stop // COVER_SCALE)) for box in canvas.box)] = 1
    inset = EDGE + FEATHER / 2
    right, bottom = canvas.source_width - inset, canvas.source_height - inset
    corners = np.array([[inset, inset, 1], [right, inset, 1], [right, bottom, 1], [inset, bottom, 1]]).T
    chosen = []
    candidates = (k for k in held if k != index and k % DONOR_STEP == 0 and scenes[k] == scenes[index])
    for donor in sorted(candidates, key=lambda k: abs(k - index)):
        outline = (_to_canvas(places, donor, index, canvas) @ corners)[:2].T / COVER_SCALE
        with_donor = cv2.fillConvexPoly(covered.copy(), np.rint(outline).astype(np.int32), 1)
        if with_donor.sum() - covered.sum() > MIN_NEW * covered.size:
            covered = with_donor
            chosen.append(donor)
    return chosen


def _opacity(height: int, width: int) -> np.ndarray:
    """float32 [h,w]: 0 at the edge of a frame, 1 from FEATHER pixels on."""
    rows, columns = (np.minimum(np.arange(side), np.arange(side)[::-1]) for side in (height, width))
    inside = np.minimum(rows[:, None], columns[None, :]) + 1
    return np.clip((inside - EDGE) / FEATHER, 0, 1).astype(np.float32)


def _compose(
    frame: np.ndarray, layers: list[tuple[np.ndarray, np.ndarray]], opacity: np.ndarray, canvas: Canvas
) -> np.ndarray:
    """Lays the donors side by side, the first on top, blurs on from there, and matches colours at the border."""
    size = (canvas.width, canvas.height)
    placed = canvas.paste(np.zeros((1, canvas.height, canvas.width, 3), np.uint8), frame[None])[0]
    filled = np.zeros(placed.shape, np.float32)
    clear = np.ones((*placed.shape[:2], 1), np.float32)  # what still shows through
    for pixels, to_canvas in layers:
        warped = cv2.warpPerspective(pixels, to_canvas, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        share = cv2.warpPerspective(opacity, to_canvas, size)[..., None]
        share *= clear * _trust(warped, placed, share, canvas)
        filled += share * warped
        clear -= share
    inside = 1 - canvas.mask()
    unknown = (clear > 0.5).astype(np.uint8) * (1 - inside)
    # inside the box the frame itself stands in where no donor lies, so that the seam has no false difference
    base = np.where(inside, placed, filled / np.maximum(1 - clear, 1e-3))
    filled += clear * spread(base[None], unknown)[0]
    return match_seam(filled[None], frame[None], canvas)[0]


def _trust(warped: np.ndarray, placed: np.ndarray, share: np.ndarray, canvas: Canvas) -> float:
    """1 for a donor that shows what the frame shows where they overlap, 0 where the registration went astray."""
    height, width = (max(1, round(side / COVER_SCALE)) for side in (canvas.source_height, canvas.source_width))
    donor, frame, there = (
        cv2.resize(image[canvas.box].astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        for image in (warped, placed, share)
    )
    overlap = there > 0.5
    if not overlap.any():
        return 1.0
    difference = np.abs(donor - frame)[overlap].mean()
    # a slope, for a step would let the donor blink
    return float(np.clip((DISTRUST - difference) / (DISTRUST - TRUST), 0, 1))
