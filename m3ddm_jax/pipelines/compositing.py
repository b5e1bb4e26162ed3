"""Bringing generated frames and source frames together: sizes, the spread of the source's border, invisible seams."""

import cv2
import numpy as np

from m3ddm_jax.completion.distance import nearest
from m3ddm_jax.geometry import Canvas

REACH = 1 / 8  # of the canvas's short side: over this distance the colour correction falls to 1 / e
COARSEST = 4  # pixels on the short side of the widest blur
_FINE = 4.0  # pixels of a Gaussian; what a wider one leaves is coarse enough for a reduced image


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales frames [T,H,W,C], uint8 or float32: by area means where a side shrinks, by cubics where it grows.

    Same dtype; floats may overshoot their range by the cubics' few per cent.
    """
    shrunk = _resize(frames, min(height, frames.shape[1]), min(width, frames.shape[2]), cv2.INTER_AREA)
    return _resize(shrunk, height, width, cv2.INTER_CUBIC)


def _resize(frames: np.ndarray, height: int, width: int, filter_: int) -> np.ndarray:
    if frames.shape[1:3] == (height, width):
        return frames
    scaled = np.empty((len(frames), height, width, frames.shape[3]), frames.dtype)
    for target, frame in zip(scaled, frames, strict=True):
        # OpenCV drops a channel axis of length 1
        target[...] = cv2.resize(frame, (width, height), interpolation=filter_).reshape(target.shape)
    return scaled


def spread(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Continues what is known over the rest: the nearest known pixel, the more blurred the farther away it is.

    At the border the known is continued without a step; far out there is a blur as wide as the frame's short side.

    frames: [T,H,W,3]. mask: uint8 [H,W,1], 1 = unknown; what frames hold there is not looked at, unless all is unknown.
    Returns float32 [T,H,W,3] in the range of the frames, known pixels unchanged.
    """
    continue_known = Spread(mask)
    continued = np.empty(frames.shape, np.float32)
    for target, frame in zip(continued, frames, strict=True):
        target[...] = continue_known(frame)
    return continued


class Spread:
    """`spread` for frames that come one by one and lack the same: which known pixels are nearest is found once."""

    def __init__(self, mask: np.ndarray):
        self._nearest, self._shares = None, []
        if mask.all() or not mask.any():
            return
        rows, columns, distance = nearest(mask[..., 0] == 0)
        self._nearest = columns.astype(np.float32), rows.astype(np.float32)
        height, width = distance.shape
        while min(height, width) > 2 * COARSEST:
            # A level is blurred over about 2 ** depth pixels: the next takes over where that is little to the distance.
            there = cv2.resize(distance, (width, height), interpolation=cv2.INTER_AREA)[..., None]
            share = np.clip(there / 2.0 ** (len(self._shares) + 1) - 0.5, 0, 1)
            self._shares.append(share * share * (3 - 2 * share))
            height, width = -(-height // 2), -(-width // 2)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """A frame [H,W,3] as `spread` makes it, float32. A Gaussian pyramid, collapsed by shares of its levels."""
        frame = frame.astype(np.float32)
        if self._nearest is None:
            return frame
        levels = [cv2.remap(frame, *self._nearest, cv2.INTER_NEAREST)]
        for _ in self._shares:
            levels.append(cv2.pyrDown(levels[-1], borderType=cv2.BORDER_REPLICATE))
        blurred = levels.pop()
        for level, share in zip(reversed(levels), reversed(self._shares), strict=True):
            blurred = cv2.pyrUp(blurred, dstsize=level.shape[1::-1])
            blurred -= level
            blurred *= share
            blurred += level
        return blurred


def match_seam(
    generated: np.ndarray, source_frames: np.ndarray, canvas: Canvas, masks: np.ndarray | None = None
) -> np.ndarray:
    """Corrects generated canvas frames so that no seam shows where the source is pasted.

    generated: [T,H,W,3] uint8 or float in 0..255, with the model's version of the known area inside the box.
    source_frames: uint8 [T,h,w,3]. masks: uint8 [T,H,W,1], 1 = generated, where that is more than the canvas's border.
    Returns uint8 [T,H,W,3]; known pixels are not changed.
    """
    blank = np.zeros((len(generated), canvas.height, canvas.width, 3), np.uint8)
    known = canvas.paste(blank, source_frames)
    return match_known(generated, known, canvas.mask()[None] if masks is None else masks)


def match_known(generated: np.ndarray, known: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Corrects generated frames so that no seam shows where known pixels take their place.

    The difference known - generated at the border of what is known is spread outward, ever smoother along the border,
    and fades over about an eighth of the frame's short side.

    generated: [T,H,W,3] uint8 or float in 0..255, with the model's version of the known pixels. known: uint8 [T,H,W,3].
    masks: uint8 [T or 1,H,W,1], 1 = generated; what `known` holds there is not looked at.
    Returns uint8 [T,H,W,3]; pixels outside of the masks are not changed.
    """
    matched = np.empty(generated.shape, np.uint8)
    for index, (target, frame, source) in enumerate(zip(matched, generated, known, strict=True)):
        if index < len(masks):
            match = Matcher(masks[index])
        target[...] = match(frame, source)
    return matched


class Matcher:
    """`match_known` for frames that come one by one and have the same mask."""

    def __init__(self, mask: np.ndarray):
        self._mask, self._spread = mask, Spread(mask)
        self._fade = mask * np.exp(-_steps_outside(mask) / (REACH * min(mask.shape[:2])))

    def __call__(self, generated: np.ndarray, known: np.ndarray) -> np.ndarray:
        """uint8 [H,W,3] of a generated and a known frame, both [H,W,3]."""
        difference = np.where(self._mask, 0, known.astype(np.float32) - generated)
        return np.clip(np.rint(generated + self._fade * self._spread(difference)), 0, 255).astype(np.uint8)


def soften(image: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur by `sigma` pixels of float32 [H,W], to within two hundredths of its range; its cost does not grow
    with sigma."""
    height, width = image.shape
    factor = max(1, int(sigma / _FINE))
    reduced = cv2.resize(image, (-(-width // factor), -(-height // factor)), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(reduced, (0, 0), sigma / factor)
    return cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)


def _steps_outside(mask: np.ndarray) -> np.ndarray:
    """Pixels from the first one outside of what is known, where the correction has full strength: [H,W,1]."""
    return np.maximum(cv2.distanceTransform(mask, cv2.DIST_L2, 5) - 1, 0)[..., None]
