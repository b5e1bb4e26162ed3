"""Outpainting and inpainting by real pixels: gradients are carried along flow from frames that saw a place.

Source: ISVI (Zhang et al., CVPR 2022). Each network may be left out; a classical part replaces it then: OpenCV's DIS
for RAFT, the camera's motion and a membrane for IGFC, no style fusion for ASFN, patches of the source for DeepFill.
LaMa or MI-GAN may take DeepFill's place.
"""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np

from m3ddm_jax.geometry import Canvas, Masks
from m3ddm_jax.pipelines.base import COMPLETION_NETWORKS, ISVI_NETWORKS, IsviOptions
from m3ddm_jax.pipelines.completion import PatchCompleter
from m3ddm_jax.pipelines.compositing import Matcher
from m3ddm_jax.pipelines.network_completion import NetworkCompleter, edge_padded, predictor
from m3ddm_jax.pipelines.optical_flow import CameraMotion, Dis, Igfc, Raft
from m3ddm_jax.pipelines.options import CheckedSettings, or_none
from m3ddm_jax.pipelines.propagation import BYTES_PER_PIXEL, Components, Limits, propagate
from m3ddm_jax.pipelines.work_canvas import WorkCanvas
from m3ddm_jax.pipelines.work_clip import WorkClip
from m3ddm_jax.types import FramesTHWC, Variables
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.shots import source_cuts
from m3ddm_jax.weights import held_kinds, load_model, resolve

_LOG = logging.getLogger(__name__)

NONE = "none"
"""The model that has no networks."""

_LITTLE = 1e-3  # share of what is hidden; whoever carries less has found nothing
_ASFN_MULTIPLE = 4  # of which sides are


@dataclasses.dataclass(frozen=True)
class IsviSettings(CheckedSettings):
    """How real pixels are carried.

    lines: shorter side, in pixels, at which they are; a smaller canvas keeps its size.
    megabytes: of gradients that a window of frames has; what a window makes is half of it, and known to the next one. A
      process holds about seven times as many.
    max_error: pixels by which flow there and back may stray in a step from one frame to the next.
    key_frames: of a window, whose unknown rest is completed at most; the others follow them. 0 continues it smoothly.
    anchor: how much the colour of a carried pixel counts, beside its differences to its neighbours, where these would
      lead it far from that colour; at 0 they alone are carried, as published.
    interpolation: of values between pixels: linear, as published, or cubic, which keeps detail.
    strip: pixels that a completion network completes at a time, from known ones outwards, in three steps at most; 0
      completes all at once.
    texture: of what is completed: the network's, or patches of the source over the network's colours. Without a network
      it is patches over a smooth continuation.
    refinement: iterations a scale by which LaMa's prediction is refined on 363 lines and more, 15 as published; each
      costs three forwards. 0 refines nothing.
    """

    lines: int = 480
    megabytes: int = 384
    max_error: float = 2.0
    key_frames: int = or_none(8)
    anchor: float = 0.0
    interpolation: Literal["linear", "cubic"] = "linear"
    strip: int = or_none(0)
    texture: Literal["network", "patches"] = "network"
    refinement: int = or_none(0)


class Isvi(IsviOptions):
    """The `isvi` Outpainter.

    model: a folder with any of raft/, igfc/, asfn/ and lama/, migan/ or deepfill/ in it, as `convert` makes them, or
    one of the last three itself; "none" as None.
    Raises ValueError for a folder that has none of them, a network of another kind, or settings that do not fit.
    """

    def __post_init__(self):
        self._settings = IsviSettings.make(self.settings or {})
        folder = None if str(self.model or NONE) == NONE else resolve(self.model)
        self.models = {} if folder is None else {"model": (folder, self._settings)}
        self._parts = _load_components(folder, self._settings)

    def __call__(
        self, source: FrameSource, canvas: Canvas, rng: None = None, masks: Masks | None = None
    ) -> Iterator[FramesTHWC]:
        """Yields canvas frames, uint8 [n, H, W, 3], in time order; the caller pastes the source's own pixels. Logs a
        line if no pixel was found anywhere."""
        hidden, found = 0, 0
        for index, (frame, confidence) in enumerate(self.carry(source, canvas, masks)):
            generated = _hidden(canvas, masks, index) > 0
            hidden += np.count_nonzero(generated)
            found += np.count_nonzero(generated & (confidence > 0))
            yield frame[None]
        if found < _LITTLE * hidden:
            _LOG.warning("isvi: no frame shows what another lacks (does the camera stand still?): made up")

    def carry(
        self, source: FrameSource, canvas: Canvas, masks: Masks | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields canvas frames that show the source, uint8 [H, W, 3], and how far each pixel is a real one, float32
        [H, W, 1] in 0..1 (1 known, 0 made up), in time order.

        masks: what is generated besides the border.
        Raises ValueError where nothing of the source is left on the work canvas, or RAFT cannot take its frames.
        """
        settings = self._settings
        work = WorkCanvas(canvas, settings.lines, multiple=2)
        window = max(3, (settings.megabytes << 20) // (work.height * work.width * BYTES_PER_PIXEL))
        cubic = settings.interpolation == "cubic"
        limits = Limits(window, settings.max_error, settings.key_frames, settings.anchor, cubic)
        ahead = source.reopen()
        clip = WorkClip(ahead, work, masks, keep=window + 1)
        windows = propagate(clip, source_cuts(ahead), self._parts, limits)
        match = None
        if masks is None:  # masks cannot be read from two places at once
            windows, match = _one_ahead(windows), Matcher(canvas.mask())
        blank = np.zeros((1, canvas.height, canvas.width, 3), np.uint8)
        filled = itertools.chain.from_iterable(zip(*window, strict=True) for window in windows)
        for index, (frame, confidence) in enumerate(filled):
            originals, mask = source[index : index + 1], _hidden(canvas, masks, index)
            match = match if masks is None else Matcher(mask)
            known = canvas.paste(blank, originals)
            matched = match(work.to_canvas(frame[None], originals)[0], known[0])
            trust = np.clip(work.to_canvas(confidence[None], originals)[0], 0, 1)
            yield np.where(mask, matched, known[0]), np.where(mask, trust, 1)


def _hidden(canvas: Canvas, masks: Masks | None, index: int) -> np.ndarray:
    """What is generated of a frame, uint8 [H, W, 1]."""
    border = canvas.mask()
    return border if masks is None else np.maximum(masks[index : index + 1][0], border)


def _one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each made by another thread while the one before is used."""
    end = object()
    with ThreadPoolExecutor(1) as worker:
        following = worker.submit(next, items, end)
        while (item := following.result()) is not end:
            following = worker.submit(next, items, end)
            yield item


def _load_components(folder: Path | None, settings: IsviSettings) -> Components:
    """The networks that a model folder has, and classical parts for the others."""
    folders = {} if folder is None else _network_folders(folder)
    there = {kind: load_model(path, kind=kind) for kind, path in folders.items()}
    completion = next((there[kind] for kind in COMPLETION_NETWORKS if kind in there), None)
    network = (
        None if completion is None else NetworkCompleter(predictor(*completion, settings.refinement), settings.strip)
    )
    by_patches = network is None or settings.texture == "patches"
    return Components(
        estimate=Raft(*there["raft"]) if "raft" in there else Dis(),
        complete=Igfc(*there["igfc"]) if "igfc" in there else CameraMotion(),
        hallucinate=PatchCompleter(base=network and network.complete) if by_patches else network,
        fuse=_fuser(*there["asfn"]) if "asfn" in there else None,
    )


def _network_folders(folder: Path) -> dict[str, Path]:
    """The model folders that are used, by kind: the first completion network alone."""
    held = held_kinds(folder, ISVI_NETWORKS)
    unused = [kind for kind in COMPLETION_NETWORKS if kind in held][1:]
    found = {kind: held[kind] for kind in ISVI_NETWORKS if kind in held and kind not in unused}
    if not found:
        places = ", ".join(f"{kind}/" for kind in ISVI_NETWORKS)
        commands = "`python -m m3ddm_jax.convert KIND SOURCE FOLDER/KIND`"
        raise ValueError(f"{folder} has none of {places}: {commands} makes them")
    if unused:
        _LOG.warning("%s in %s not used: it has another completion network", ", ".join(unused), folder)
    return found


def _fuser(module: nn.Module, variables: Variables) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """ASFN as `Components.fuse`. Its published weights see BGR, differences of 0..1."""
    variables, apply = jax.device_put(variables), jax.jit(module.apply)

    def fuse(gradients: np.ndarray, mask: np.ndarray) -> np.ndarray:
        bgr, hole = (edge_padded(x, _ASFN_MULTIPLE) for x in (gradients[..., ::-1] / 255, mask))
        fused = np.asarray(apply(variables, bgr, hole))[:, : mask.shape[1], : mask.shape[2], ::-1]
        return 255 * fused

    return fuse
