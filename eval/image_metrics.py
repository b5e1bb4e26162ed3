"""MSE, PSNR and SSIM of uint8 clips, on whole frames and on the generated region alone.

A value that does not exist (the PSNR of an empty region, the SSIM of a frame smaller than its window) is nan here and
null in a report; means are taken over the values that exist.
"""

import dataclasses
import functools
from collections.abc import Sequence

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

PSNR_CAP = 100.0  # dB; what identical frames get, so that every mean and every report stays finite

SSIM_WINDOWS = {"gaussian": 11, "uniform7": 7, "uniform65": 65}
"""Variants of SSIM and the sides of their windows in pixels.

gaussian: Wang et al. 2004, Gaussian of sigma 1.5, population covariances; the default.
uniform7: uniform window, sample covariances; scikit-image's default.
uniform65: the same, 65 pixels a side, as E2FGVI and ProPainter report it; far more lenient with noise.
"""


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
    return divide(total / 255.0**2, count)


def ssim_map(truth: np.ndarray, output: np.ndarray, variant: str = "gaussian") -> np.ndarray:
    """Structural similarity around each pixel, averaged over channels, only where the window lies inside the frame.

    truth, output: uint8 [T,H,W,C]; variant: a name of SSIM_WINDOWS, whose side is w here.
    Returns float32 [T,H-w+1,W-w+1]. Raises ValueError for another variant and for frames smaller than the window.
    """
    window = _window(variant)
    if min(truth.shape[1:3]) < window:
        size = f"{truth.shape[2]}x{truth.shape[1]}"
        raise ValueError(f"SSIM {variant} needs {window} pixels or more a side, frames are {size}")
    return np.asarray(_ssim_map(truth, output, variant))


def _window(variant: str) -> int:
    if variant not in SSIM_WINDOWS:
        raise ValueError(f"SSIM variant {variant!r} is unknown: one of {', '.join(SSIM_WINDOWS)} is accepted")
    return SSIM_WINDOWS[variant]


@functools.partial(jax.jit, static_argnames="variant")
def _ssim_map(truth, output, variant):
    window = SSIM_WINDOWS[variant]
    if variant == "gaussian":
        options = {"filter_size": window, "filter_sigma": 1.5}
    else:
        # Sample covariances are the population's times n / (n - 1), which leaves the same ratio as a smaller k2.
        options = {"filter_fn": functools.partial(_window_mean, size=window), "k2": 0.03 * (1 - window**-2) ** 0.5}
    a, b = (frames.astype(jnp.float32) for frames in (truth, output))
    return jnp.mean(dm_pix.ssim(a, b, max_val=255.0, return_map=True, **options), axis=-1)


def _window_mean(x, size):
    """Mean of the size x size window around each pixel that has it: [T,H,W,C] -> [T,H-size+1,W-size+1,C].

    x: whole numbers up to 255**2, summed exactly: float32 would lose the small variances of wide windows.
    """
    x = x.astype(jnp.int32)
    for window in ((1, size, 1, 1), (1, 1, size, 1)):
        x = jax.lax.reduce_window(x, 0, jax.lax.add, window, (1, 1, 1, 1), "VALID")
    return x.astype(jnp.float32) / size**2


def check_frames(truth: np.ndarray, output: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mask of every frame, bool [T,H,W,1], of frames and a mask that fit together.

    truth, output: uint8 [T,H,W,C]; mask: [H,W,1] or [T,H,W,1], non-zero in the generated region.
    Raises ValueError for shapes or dtypes that do not fit; it names the first frame that is not finite.
    """
    for name, frames in (("truth", truth), ("output", output)):
        if frames.dtype != np.uint8 or frames.ndim != 4:
            raise ValueError(
                f"{name} must be uint8 [T,H,W,C], not {frames.dtype} {list(frames.shape)}{_broken(frames)}"
            )
    if truth.shape != output.shape:
        raise ValueError(f"truth {list(truth.shape)} and output {list(output.shape)} differ in shape")
    if mask.shape not in ((*truth.shape[1:3], 1), (*truth.shape[:3], 1)):
        raise ValueError(f"mask {list(mask.shape)} does not fit frames {list(truth.shape)}")
    return np.broadcast_to(mask != 0, (*truth.shape[:3], 1))


def _broken(frames: np.ndarray) -> str:
    if not np.issubdtype(frames.dtype, np.floating) or np.isfinite(frames).all():
        return ""
    return f", and frame {np.argwhere(~np.isfinite(frames))[0, 0]} holds nan or inf"


def score_frames(truth: np.ndarray, output: np.ndarray, mask: np.ndarray, ssim: str = "gaussian") -> FrameScores:
    """All per-frame scores of one chunk.

    truth, output: uint8 [T,H,W,C]; mask: uint8 [H,W,1] or [T,H,W,1], 1 in the generated region; ssim: a name of
    SSIM_WINDOWS. The SSIM of a region is the mean of the map over the region's pixels that have a whole window around
    them: with uniform65 a strip of up to 32 pixels along the frame's edge has none.
    Raises ValueError for shapes or dtypes that do not fit, and for another SSIM.
    """
    mask = check_frames(truth, output, mask)
    everything = np.ones((*truth.shape[1:3], 1), bool)
    whole_ssim = region_ssim = np.full(len(truth), np.nan)
    window = _window(ssim)
    if min(truth.shape[1:3]) >= window:
        similarity = ssim_map(truth, output, ssim).astype(np.float64)
        border = window // 2
        inside = mask[:, border:-border, border:-border, 0]
        whole_ssim = np.mean(similarity, axis=(1, 2))
        region_ssim = divide(np.sum(similarity, axis=(1, 2), where=inside), np.sum(inside, axis=(1, 2)))
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
            "psnr_video": float(psnr(divide(total, np.sum(weights)))),
            "psnr_frame": mean_of_existing(psnr(mse)),
            "ssim": mean_of_existing(ssim),
        }
    return summary


def mean_of_existing(values) -> float:
    """Mean of the values that are not nan; nan if there is none."""
    values = np.asarray(values, np.float64)
    existing = values[~np.isnan(values)]
    return float(np.mean(existing)) if existing.size else float("nan")


def divide(total, count):
    """total / count, nan where count is zero."""
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=np.asarray(count) > 0)
