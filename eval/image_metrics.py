"""PSNR and SSIM of uint8 clips, on whole frames and on the generated region alone.

A value that does not exist (the PSNR of an empty region, the SSIM of a frame smaller than its window) is nan here and
null in a report; means are taken over the values that exist.
"""

import dataclasses
from collections.abc import Sequence

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

PSNR_CAP = 100.0  # dB; what identical frames get, so that every mean and every report stays finite
WINDOW = 11  # side of the SSIM window
_BORDER = WINDOW // 2


@dataclasses.dataclass(frozen=True)
class FrameScores:
    """Per-frame scores of consecutive frames: float64 [T] each, errors as mean squared error of values in [0, 1]."""

    whole_mse: np.ndarray
    whole_ssim: np.ndarray
    region_mse: np.ndarray
    region_ssim: np.ndarray
    region_pixels: np.ndarray

    @classmethod
    def concatenate(cls, parts: Sequence["FrameScores"]) -> "FrameScores":
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def psnr(mse):
    """Peak signal-to-noise ratio in dB of mean squared errors of values in [0, 1], at most PSNR_CAP; nan stays nan."""
    return -10.0 * np.log10(np.maximum(np.asarray(mse, np.float64), 10.0 ** (-PSNR_CAP / 10.0)))


def squared_error(truth: np.ndarray, output: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean squared error of each frame within a mask, values in [0, 1].

    truth, output: uint8 [T,H,W,C]; mask: [T,H,W,1] or [H,W,1], non-zero where pixels count. Summed exactly in integers.
    Returns float64 [T], nan for a frame whose mask is empty.
    """
    difference = (truth.astype(np.int32) - output.astype(np.int32)) ** 2
    mask = np.broadcast_to(mask != 0, (*truth.shape[:3], 1))
    total = np.sum(difference, axis=(1, 2, 3), dtype=np.int64, where=mask)
    count = np.sum(mask, axis=(1, 2, 3)) * truth.shape[-1]
    return _divide(total / 255.0**2, count)


def ssim_map(truth: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Structural similarity around each pixel, averaged over channels (Wang et al. 2004).

    truth, output: uint8 [T,H,W,C], at least WINDOW high and wide. Gaussian window 11x11 with sigma 1.5, population
    variances, data range 1, only where the window lies inside the frame: returns float32 [T,H-10,W-10].
    """
    return np.asarray(_ssim_map(truth, output))


@jax.jit
def _ssim_map(truth, output):
    a, b = (frames.astype(jnp.float32) / 255.0 for frames in (truth, output))
    return jnp.mean(dm_pix.ssim(a, b, max_val=1.0, filter_size=WINDOW, filter_sigma=1.5, return_map=True), axis=-1)


def score_frames(truth: np.ndarray, output: np.ndarray, mask: np.ndarray) -> FrameScores:
    """All per-frame scores of one chunk.

    truth, output: uint8 [T,H,W,C]; mask: uint8 [H,W,1] or [T,H,W,1], 1 in the generated region. The SSIM of a region is
    the mean of the map over the region's pixels that have a whole window around them.
    Raises ValueError for shapes or dtypes that do not fit.
    """
    for name, frames in (("truth", truth), ("output", output)):
        if frames.dtype != np.uint8 or frames.ndim != 4:
            raise ValueError(f"{name} must be uint8 [T,H,W,C], not {frames.dtype} {list(frames.shape)}")
    if truth.shape != output.shape:
        raise ValueError(f"truth {list(truth.shape)} and output {list(output.shape)} differ in shape")
    if mask.shape not in ((*truth.shape[1:3], 1), (*truth.shape[:3], 1)):
        raise ValueError(f"mask {list(mask.shape)} does not fit frames {list(truth.shape)}")
    mask = np.broadcast_to(mask != 0, (*truth.shape[:3], 1))
    everything = np.ones((*truth.shape[1:3], 1), bool)
    whole_ssim = region_ssim = np.full(len(truth), np.nan)
    if min(truth.shape[1:3]) >= WINDOW:
        similarity = ssim_map(truth, output).astype(np.float64)
        inside = mask[:, _BORDER:-_BORDER, _BORDER:-_BORDER, 0]
        whole_ssim = np.mean(similarity, axis=(1, 2))
        region_ssim = _divide(np.sum(similarity, axis=(1, 2), where=inside), np.sum(inside, axis=(1, 2)))
    return FrameScores(
        whole_mse=squared_error(truth, output, everything),
        whole_ssim=whole_ssim,
        region_mse=squared_error(truth, output, mask),
        region_ssim=region_ssim,
        region_pixels=np.sum(mask, axis=(1, 2, 3)),
    )


def summarize(scores: FrameScores) -> dict[str, dict[str, float]]:
    """The scores of a clip: {"whole", "region"} -> {"psnr_video", "psnr_frame", "ssim"}.

    psnr_video takes one error over all pixels of the clip and then the logarithm; psnr_frame is the mean of the frames'
    own PSNR and never lower, the logarithm being convex; ssim is the mean over frames.
    """
    pixels = {"whole": np.ones(len(scores.whole_mse)), "region": scores.region_pixels}
    summary = {}
    for area, weights in pixels.items():
        mse, ssim = getattr(scores, f"{area}_mse"), getattr(scores, f"{area}_ssim")
        total = np.sum(np.where(weights > 0, mse, 0.0) * weights)
        summary[area] = {
            "psnr_video": float(psnr(_divide(total, np.sum(weights)))),
            "psnr_frame": mean_of_existing(psnr(mse)),
            "ssim": mean_of_existing(ssim),
        }
    return summary


def mean_of_existing(values) -> float:
    """Mean of the values that are not nan; nan if there is none."""
    values = np.asarray(values, np.float64)
    existing = values[~np.isnan(values)]
    return float(np.mean(existing)) if existing.size else float("nan")


def _divide(total, count):
    """total / count, nan where count is zero."""
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=np.asarray(count) > 0)
