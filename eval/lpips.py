"""LPIPS of uint8 frames, on whole frames and on the generated region alone."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eval.image_metrics import check_frames, divide
from m3ddm_jax.models.lpips import LPIPS, mean_distance, upsampled_distance
from m3ddm_jax.types import Variables


class FrameLPIPS:
    """Measures frame by frame, in batches of one size (one compile a frame size) spread over devices.

    module, variables: as `weights.load_model` returns them.
    batch_size: frames at a time, rounded up to a multiple of the devices; the knob for memory.
    devices: those of this process by default.
    """

    def __init__(
        self,
        module: LPIPS,
        variables: Variables,
        *,
        batch_size: int = 8,
        devices: Sequence[jax.Device] | None = None,
    ):
        devices = np.array(devices or jax.local_devices())
        mesh = Mesh(devices, ("frames",))
        self._by_frame = NamedSharding(mesh, PartitionSpec("frames"))
        self._variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
        self._batch_size = -(-batch_size // devices.size) * devices.size
        self._measure = jax.jit(functools.partial(_measure, module))

    def __call__(self, truth: np.ndarray, output: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """LPIPS of each frame: (whole frame, generated region), float64 [T] each.

        truth, output: uint8 [T,H,W,3]; mask: [H,W,1] or [T,H,W,1], non-zero in the generated region. The whole frame's
        is the published distance; the region's is the mean of the distance map over it, nan where it is empty.
        Raises ValueError for shapes or dtypes that do not fit, for frames too small for the network, and where a
        distance is not finite.
        """
        mask = check_frames(truth, output, mask)
        parts = []
        for start in range(0, len(truth), self._batch_size):
            batch = [self._pad(frames[start : start + self._batch_size]) for frames in (truth, output, mask)]
            parts.append(self._measure(self._variables, *jax.device_put(batch, self._by_frame)))
        columns = zip(*jax.device_get(parts), strict=True)
        whole, total = (np.concatenate(column)[: len(truth)].astype(np.float64) for column in columns)
        if not np.isfinite(whole).all():
            frame = np.flatnonzero(~np.isfinite(whole))[0]
            raise ValueError(f"LPIPS of frame {frame} is {whole[frame]}: the weights hold nan or inf")
        return whole, divide(total, np.sum(mask, axis=(1, 2, 3)))

    def _pad(self, frames: np.ndarray) -> np.ndarray:
        return np.pad(frames, [(0, self._batch_size - len(frames)), (0, 0), (0, 0), (0, 0)])


def _measure(module, variables, truth, output, mask):
    """(distance [N], sum of the distance map over the mask [N]) of uint8 frames, in full float32 on every device."""
    a, b = (frames.astype(jnp.float32) / 127.5 - 1.0 for frames in (truth, output))
    with jax.default_matmul_precision("highest"):
        distances = module.apply(variables, a, b, method="layer_distances")
    distance_map = upsampled_distance(distances, *truth.shape[1:3])
    return mean_distance(distances), jnp.sum(distance_map, axis=(1, 2), where=mask[..., 0])
