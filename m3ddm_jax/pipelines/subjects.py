"""Parts of a frame that may not be copied: people, singular patches, and motion unlike the border's surroundings.

People are detected by the cascades and the histogram detector that OpenCV's 4.x packages contain (Viola and Jones, CVPR
2001; Dalal and Triggs, CVPR 2005) and outlined by GrabCut (Rother et al., SIGGRAPH 2004).
"""

import functools
import logging
import os
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from m3ddm_jax.completion.distance import nearest
from m3ddm_jax.pipelines.optical_flow import camera_motion

_LOG = logging.getLogger(__name__)
_CASCADES = ("haarcascade_frontalface_alt2.xml", "haarcascade_profileface.xml")
_PASSES = ((0, False), (1, False), (1, True))  # cascade, and whether the frame is mirrored: profiles look one way
_SMALLEST_FACE = 1 / 12  # of the short side
_STEP = 1.15  # from one size of people to the next
_AGREEING = 4  # overlapping windows that make a face
_PERSON_LINES = 384  # of the frame in which whole people are looked for
_PERSON_SCORE = 0.6  # of the detector, at least
# Parts of a person around a face, in widths of the face: half of the width, first and last row below the top.
_HEAD = (0.55, -0.35, 1.25)
_BODY = (0.9, 1.3, 20.0)
_CORE = (0.35, 0.0, 1.2)
_ROUNDS = 3  # of GrabCut
_OUTLINE_LINES = 128  # of the frame that GrabCut sees, about
# Lengths are parts of the short side.
_AROUND = 0.1  # how far from the unknown region the surroundings of the border reach
_GROWN = 0.015
_SLOWEST = 0.7  # pixels a frame
_RELATIVE = 0.15  # of the camera's motion
_FLAT = 6.0  # grey levels of contrast, below which motion cannot be measured
_MOST = 0.6  # of what is known; if more moves, the camera's motion was not found
_PATCH = 5  # pixels of a patch's side
_PATCH_LINES = 48  # of the reduced frame that patches are compared in
# A patch is singular whose distance to the nearest other one exceeds all of these:
_DISTANCE = 18.0  # grey levels, root mean square
_SHARE = 0.6  # of its own contrast
_TYPICAL = 1.25  # times the frame's median distance


class People(NamedTuple):
    """bool [h, w] each: bodies, heads included, and heads alone, both grown a little."""

    bodies: np.ndarray
    heads: np.ndarray


def find_people(frame: np.ndarray, known: np.ndarray) -> People:
    """People in the known part of a frame.

    Reports on stderr, once, where OpenCV lacks the detectors; nobody is found then.
    frame: float32 [h, w, 3] in 0..255. known: bool [h, w].
    """
    detectors = _detectors()
    nobody = np.zeros(known.shape, bool)
    if detectors is None:
        return People(nobody, nobody)
    image = np.clip(frame, 0, 255).astype(np.uint8)
    labels = np.full(known.shape, cv2.GC_PR_BGD, np.uint8)
    for left, top, width, height in _detect_persons(image, detectors[1]):
        labels[max(0, top) : top + height, max(0, left) : left + width] = cv2.GC_PR_FGD
    faces = _detect_faces(image, detectors[0])
    heads = _near(faces, _HEAD, known.shape)
    labels[heads | _near(faces, _BODY, known.shape)] = cv2.GC_PR_FGD
    labels[_near(faces, _CORE, known.shape)] = cv2.GC_FGD
    labels[~known] = cv2.GC_BGD
    bodies = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    if bodies.any():
        bodies = _outline(image, labels) | heads & known  # hair is often taken for background
    return People(_grown(bodies), _grown(heads & known))


def _outline(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The foreground that GrabCut finds in uint8 [h, w, 3], starting from its labels, uint8 [h, w]: bool [h, w]."""
    step = max(1, round(min(labels.shape) / _OUTLINE_LINES))
    few = np.ascontiguousarray(labels[::step, ::step])
    if len(np.unique(np.isin(few, (cv2.GC_FGD, cv2.GC_PR_FGD)))) == 2:  # GrabCut needs pixels of both kinds
        small = cv2.resize(image, few.shape[::-1], interpolation=cv2.INTER_AREA)
        cv2.setRNGSeed(0)
        cv2.grabCut(small, few, None, np.zeros((1, 65)), np.zeros((1, 65)), _ROUNDS, cv2.GC_INIT_WITH_MASK)
    labels = few.repeat(step, 0).repeat(step, 1)[: labels.shape[0], : labels.shape[1]]
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))


def _near(faces: list[tuple[int, int, int, int]], part: tuple[float, float, float], shape: tuple[int, int]):
    """A part of people around their faces, bool [h, w]."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    found = np.zeros(shape, bool)
    for left, top, width, _ in faces:
        aside, first, last = (share * width for share in part)
        found |= (np.abs(columns - left - width / 2) < aside) & (rows >= top + first) & (rows < top + last)
    return found


def _detect_faces(image: np.ndarray, cascades: list) -> list[tuple[int, int, int, int]]:
    """(left, top, width, height) of faces in uint8 [h, w, 3], the first of those that overlap."""
    grey = cv2.equalizeHist(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    least = max(20, round(_SMALLEST_FACE * min(grey.shape)))
    taken, faces = np.zeros(grey.shape, bool), []
    for index, mirrored in _PASSES:
        seen = np.ascontiguousarray(grey[:, ::-1]) if mirrored else grey
        found = cascades[index].detectMultiScale(seen, _STEP, _AGREEING, minSize=(least, least))
        for left, top, width, height in found:
            left = grey.shape[1] - left - width if mirrored else left
            there = np.s_[top : top + height, left : left + width]
            if not taken[there].any():
                faces.append((left, top, width, height))
            taken[there] = True
    return faces


def _detect_persons(image: np.ndarray, detector: "cv2.HOGDescriptor") -> Iterator[tuple[int, int, int, int]]:
    """(left, top, width, height) of whole people in uint8 [h, w, 3]."""
    scale = _PERSON_LINES / min(image.shape[:2])
    large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    boxes, scores = detector.detectMultiScale(large, winStride=(8, 8), scale=_STEP)
    for box, score in zip(boxes, np.ravel(scores), strict=True):
        if score >= _PERSON_SCORE:
            yield tuple(round(side / scale) for side in box)


def _grown(found: np.ndarray) -> np.ndarray:
    return cv2.dilate(found.astype(np.uint8), _disk(found.shape)).astype(bool)


def _disk(shape: tuple[int, int]) -> np.ndarray:
    size = 2 * max(1, round(_GROWN * min(shape))) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


@functools.cache
def _detectors() -> tuple[list, object] | None:
    folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
    if not hasattr(cv2, "HOGDescriptor") or not all(os.path.exists(folder + name) for name in _CASCADES):
        _LOG.warning(
            "OpenCV %s has no detector of people, so that they may be copied into the border: "
            "pip install 'opencv-python-headless>=4.11,<5'",
            cv2.__version__,
        )
        return None
    people = cv2.HOGDescriptor()
    people.setSVMDetector(cv2.HOGDescriptor_getDefaultPeopleDetector())
    return [cv2.CascadeClassifier(folder + name) for name in _CASCADES], people


def find_moving(frame: np.ndarray, known: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Pixels that move unlike the surroundings of the border, grown a little, bool [h, w].

    The content beyond the border continues what is near to it, whatever the rest of the frame does: a camera that
    follows a surfer sees the wave move.

    frame: float32 [h, w, 3] in 0..255. known: bool [h, w]. flow: float32 [h, w, 2] to a neighbouring frame.
    """
    short = min(known.shape)
    reach = 2 * max(1, round(_AROUND * short)) + 1
    around = cv2.dilate((~known).astype(np.uint8), np.ones((reach, reach), np.uint8)).astype(bool) & known
    camera = camera_motion(flow, around)
    grey = cv2.cvtColor(np.clip(frame, 0, 255).astype(np.uint8), cv2.COLOR_RGB2GRAY).astype(np.float32)
    contrast = np.sqrt(cv2.blur((grey - cv2.blur(grey, (9, 9))) ** 2, (9, 9)))
    strange = np.linalg.norm(flow - camera, axis=-1) > _SLOWEST + _RELATIVE * np.linalg.norm(camera, axis=-1)
    moving = (strange & (contrast > _FLAT) & known).astype(np.uint8)
    moving = cv2.morphologyEx(moving, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    moving = _grown(cv2.morphologyEx(moving, cv2.MORPH_CLOSE, _disk(known.shape)) > 0)
    return moving & (moving[known].mean() <= _MOST) if known.any() else moving


def find_singular(frame: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Pixels of patches that nothing else in the frame resembles, bool [h, w]: an eye, a shoe, a hand.

    Texture that repeats, such as grass or stairs, may repeat beyond the border; a singular patch belongs to one object.

    frame: float32 [h, w, 3] in 0..255. known: bool [h, w].
    """
    scale = min(1, _PATCH_LINES / min(known.shape))
    size = tuple(max(1, round(scale * side)) for side in known.shape[::-1])
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    whole = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 1 - 1e-6
    inside = cv2.erode(whole.astype(np.uint8), np.ones((_PATCH, _PATCH), np.uint8), borderValue=0) > 0
    if not inside.any():
        return np.zeros(known.shape, bool)
    rows, columns = np.nonzero(inside)
    windows = np.lib.stride_tricks.sliding_window_view(small, (_PATCH, _PATCH), axis=(0, 1))
    patches = windows[rows - _PATCH // 2, columns - _PATCH // 2].reshape(len(rows), 3, -1)
    distance, contrast = _nearest_patch(patches.reshape(len(rows), -1), rows, columns), patches.std(2).mean(1)
    least = np.maximum(np.maximum(_DISTANCE, _SHARE * contrast), _TYPICAL * np.median(distance))
    found = np.zeros(inside.shape, np.uint8)
    found[rows, columns] = np.isfinite(distance) & (distance > least)
    found = cv2.dilate(found, np.ones((3, 3), np.uint8))
    near_rows, near_columns, _ = nearest(inside)  # patches that are partly unknown are as the nearest known one
    return cv2.resize(found[near_rows, near_columns], known.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0


def _nearest_patch(patches: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Root mean square distance of patches [n, d] to the nearest that does not overlap; inf where all overlap: [n]."""
    squares = (patches**2).sum(1)
    distance = np.empty(len(patches), np.float32)
    for row in np.unique(rows):  # one row at a time bounds memory
        here, close = rows == row, np.abs(rows - row) < _PATCH
        apart = squares - 2 * patches[here] @ patches.T
        apart[:, close] += np.where(np.abs(columns[here, None] - columns[close]) < _PATCH, np.float32(np.inf), 0)
        distance[here] = squares[here] + apart.min(1)
    return np.sqrt(np.maximum(distance, 0) / patches.shape[1])
