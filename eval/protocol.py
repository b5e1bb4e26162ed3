"""The protocols that numbers are quoted under: what is compared with what, in which variant, and how it is averaged.

docs/evaluation.md shows them as a table, and says what the papers leave open. A preset's version rises with whatever
moves its numbers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.clips import Fit
from eval.features import sample_frames
from eval.regions import Border, Region, Squares
from m3ddm_jax.models.i3d import MIN_FRAMES


@dataclasses.dataclass(frozen=True)
class VideoDistance:
    """How the Frechet distance between all true and all generated clips is taken.

    network: "logits" of I3D (FVD), or the mean of "mixed_5c" with each clip's own batch statistics (VFID).
    frames: how many of a clip, all by default; sampling: a name of features.SAMPLINGS.
    preprocessing: a name of features.PRESETS; "none" leaves the size. lowest: what black is for the network; white is
    1. bn_epsilon: of the network; ddof: of the covariances.
    """

    name: str
    network: str
    frames: int | None
    sampling: str
    preprocessing: str
    lowest: float
    bn_epsilon: float
    ddof: int = 1

    def frame_numbers(self, num_frames: int) -> np.ndarray:
        """Which frames of a clip of that length; raises ValueError where they are too few."""
        least = max(self.frames or 0, MIN_FRAMES)
        if num_frames < least:
            raise ValueError(f"{num_frames} frames, {self.name} needs {least}")
        return sample_frames(num_frames, self.frames or num_frames, self.sampling)


@dataclasses.dataclass(frozen=True)
class Preset:
    """A protocol.

    fit: how the truth comes to its size, before anything is masked. regions: what is generated, their mean is the
    headline; without any, masks must be given. paste: known pixels are replaced by the truth before scoring.
    frames: so many from the start are compared, all by default. view: frames are resized to this shorter side and
    cropped to a square of it before PSNR, SSIM and LPIPS, and only there; not at all by default.
    psnr: of the whole clip ("video") or the mean of its frames' ("frame"); ssim: a name of image_metrics.SSIM_WINDOWS;
    lpips: the mean over depths ("mean"), or of their maps brought to the frame's size ("map"). average: all clips weigh
    the same ("clips"), or all frames ("frames").
    """

    name: str
    version: int
    fit: Fit
    regions: tuple[Region, ...]
    paste: bool
    distance: VideoDistance
    frames: int | None = None
    view: int | None = None
    psnr: str = "video"
    ssim: str = "gaussian"
    lpips: str = "mean"
    average: str = "clips"

    def describe(self) -> dict[str, Any]:
        """All that it says but its regions, for a report."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "regions"}


def _side_ratios(*ratios: float) -> tuple[Border, ...]:
    return tuple(Border(f"{ratio:g}", ratio=ratio) for ratio in ratios)


_BOTH = _side_ratios(0.25, 0.66)
_FVD = VideoDistance("fvd", "logits", 16, "uniform", "torch_resize", lowest=-1.0, bn_epsilon=1e-3)
_VFID = VideoDistance("vfid", "mixed_5c", None, "first", "none", lowest=0.0, bn_epsilon=1e-3)
_INPAINTING = Preset(
    "inpaint50",
    version=1,
    fit=Fit("squash", (240, 432), "linear"),
    regions=_BOTH,
    paste=True,
    distance=_VFID,
    psnr="frame",
    ssim="uniform65",
    average="frames",
)
_ISVI = dataclasses.replace(_INPAINTING, name="isvi", regions=(Squares("squares", columns=5, rows=4, side=0.125),))

PRESETS = {
    preset.name: preset
    for preset in (
        Preset("strict", version=2, fit=Fit("crop", (256, 256)), regions=_BOTH, paste=True, distance=_FVD),
        Preset(
            "motia",
            version=1,
            fit=Fit("squash", (256, 256), "linear"),
            regions=_BOTH,
            paste=True,
            distance=dataclasses.replace(_FVD, preprocessing="shortside_crop", bn_epsilon=1e-5),
        ),
        Preset(
            "fyc",
            version=1,
            fit=Fit("native"),
            regions=_BOTH,
            paste=False,
            distance=dataclasses.replace(_FVD, sampling="first", lowest=0.0),
            frames=16,
            view=224,
            psnr="frame",
            lpips="map",
        ),
        Preset(
            "m3ddm_plus",
            version=1,
            fit=Fit("crop", (144, 256), "linear"),
            regions=_side_ratios(0.25),
            paste=False,
            distance=dataclasses.replace(_FVD, sampling="first"),
            frames=16,
            psnr="frame",
            ssim="uniform7",
        ),
        _INPAINTING,
        _ISVI,
        dataclasses.replace(_ISVI, name="isvi_object", regions=()),
        dataclasses.replace(_ISVI, name="isvi_960x600", regions=(), fit=Fit("squash", (600, 960), "linear")),
    )
}


def get_preset(name: str, resize: str | None = None) -> Preset:
    """The preset of that name, with the truth brought to its size in another way if asked.

    Raises ValueError for another name, and for a preset that has no size to bring the truth to.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: one of {', '.join(PRESETS)} is accepted")
    preset = PRESETS[name]
    if resize is None:
        return preset
    return dataclasses.replace(preset, fit=dataclasses.replace(preset.fit, resize=resize))


def middle_square(frames: np.ndarray, side: int) -> np.ndarray:
    """uint8 [n,h,w,C] -> uint8 [n,side,side,C]: the shorter side resized to `side`, then the middle.

    Bilinear with antialiasing, as torchvision resizes images.
    """
    height, width = frames.shape[1:3]
    scale = side / min(height, width)
    resized = (max(side, int(height * scale)), max(side, int(width * scale)))
    if resized != (height, width):
        shape = (len(frames), *resized, frames.shape[-1])
        frames = np.asarray(jnp.rint(jax.image.resize(frames.astype(np.float32), shape, "linear"))).astype(np.uint8)
    top, left = ((length - side) // 2 for length in resized)
    return frames[:, top : top + side, left : left + side]
