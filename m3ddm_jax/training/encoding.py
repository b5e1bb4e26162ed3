"""Between clips and what a diffusion model trains on: what frozen networks make of a batch, once, without gradient."""

import dataclasses
import hashlib
from typing import Any, NotRequired, TypedDict

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax.traverse_util import flatten_dict

from m3ddm_jax.flow.region_fill import BLACK, hide
from m3ddm_jax.models import registry
from m3ddm_jax.models.autoencoder import from_latents, latent_mask, latent_moments
from m3ddm_jax.models.global_tokens import Evidence, observe
from m3ddm_jax.models.openclip import OpenCLIPVision
from m3ddm_jax.parallel.constrain import split_frames
from m3ddm_jax.types import Array, Codec, Latents, Variables, VideoBatch

SAMPLED = ("latents", "masked", "global")
"""The latents that a batch may have, by the beginning of their names in LatentBatch."""

EVIDENCE = tuple(field.name for field in dataclasses.fields(Evidence))
"""The arrays of a batch that are what an image encoder sees of the global frames."""


@dataclasses.dataclass(frozen=True)
class Encoders:
    """The frozen networks through which a diffusion model sees clips; `frozen` in the functions here are their
    variables, by the names that they have here.

    autoencoder: of clips, and where `global_latents` says so of the global frames. image_encoder: of the global frames,
    for a model that takes evidence of them.
    """

    autoencoder: Codec
    image_encoder: OpenCLIPVision | None = None
    global_latents: bool = True


class LatentBatch(TypedDict):
    """A VideoBatch as frozen networks encode it: mean and standard deviation of latents as networks see them (scaled).

    latents_mean, latents_std: [B, T, h, w, C], of the clip.
    masked_mean, masked_std: [B, T, h, w, C], of the clip with its unknown pixels hidden.
    black_mean, black_std: [B, 1, h, w, C], of a black frame; [B, T, h, w, C], of a black clip, of a video codec.
    mask: [B, T, h, w, 1], 1 = generate: cells that hold any unknown pixel.
    fps, clip_id: as in VideoBatch.
    global_mean, global_std: [B, G, h', w', C], of the global frames, where the model takes latents of them.
    patch_tokens, coordinates, observed, times: the fields of Evidence, where the model takes that.
    """

    latents_mean: Array
    latents_std: Array
    masked_mean: Array
    masked_std: Array
    black_mean: Array
    black_std: Array
    mask: Array
    fps: Array
    clip_id: np.ndarray
    global_mean: NotRequired[Array]
    global_std: NotRequired[Array]
    patch_tokens: NotRequired[Array]
    coordinates: NotRequired[Array]
    observed: NotRequired[Array]
    times: NotRequired[Array]


@flax.struct.dataclass
class DenoiserInputs:
    """What the network sees of a batch: latents and masked_latents [B, T, h, w, C], mask [B, T, h, w, 1], fps [B]; all
    float32.

    guide: what it is told of the whole video, as arguments of its call by their names: global_latents [B, G, h', w', C]
    of M3DDM; evidence, and drop_global where clips lose it, of GlobalPaint; nothing where it has no global guidance.
    """

    latents: jax.Array
    mask: jax.Array
    masked_latents: jax.Array
    fps: jax.Array
    guide: dict[str, Any]


def to_unit_range(frames: jax.Array) -> jax.Array:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


def encode_frames(codec: Codec, codec_variables: Variables, frames: jax.Array) -> tuple[Latents, Latents]:
    """Clips [B, T, H, W, 3] in [-1, 1] -> mean and standard deviation of their latents, [B, T', h, w, C] each."""
    return latent_moments(codec, codec_variables, split_frames(frames))


def encode_images(codec: Codec, codec_variables: Variables, frames: jax.Array) -> tuple[Latents, Latents]:
    """`encode_frames` of frames [B, G, H, W, 3] that do not follow one another: [B, G, h, w, C] each."""
    if codec.temporal_factor == 1:
        return encode_frames(codec, codec_variables, frames)
    mean, std = encode_frames(codec, codec_variables, rearrange(frames, "b g h w c -> (b g) 1 h w c"))
    return tuple(rearrange(x, "(b g) 1 h w c -> b g h w c", b=frames.shape[0]) for x in (mean, std))


def decode_latents(codec: Codec, codec_variables: Variables, latents: Latents) -> jax.Array:
    """Latents [B, T', h, w, C] -> clips [B, T, H, W, 3] about [-1, 1], not clipped."""
    return from_latents(codec, codec_variables, latents)


def encode_batch(
    encoders: Encoders, frozen: Variables, batch: VideoBatch | LatentBatch, unknown: str = "black"
) -> LatentBatch:
    """What the encoders make of a batch of uint8 clips, without clip_id; a batch that is encoded already as it is.

    unknown: what stands in for unknown pixels (flow.region_fill.hide).
    """
    if "latents_mean" in batch:
        return batch
    video, codec = to_unit_range(batch["video"]), encoders.autoencoder
    frames = {
        "latents": video,
        "masked": hide(video, batch["mask"], unknown),
        # Black frames are all alike to an image codec.
        "black": jnp.full_like(video[:1] if codec.temporal_factor > 1 else video[:1, :1], BLACK),
    }
    global_frames = to_unit_range(batch["global_frames"])
    encoded = {"mask": latent_mask(codec, batch["mask"]), "fps": batch["fps"]}
    for name, clips in frames.items():
        encoded[f"{name}_mean"], encoded[f"{name}_std"] = encode_frames(codec, frozen["autoencoder"], clips)
    if encoders.global_latents:
        moments = encode_images(codec, frozen["autoencoder"], global_frames)
        encoded["global_mean"], encoded["global_std"] = moments
    if encoders.image_encoder is not None:
        canvas_size = video.shape[2:4]
        seen = observe(encoders.image_encoder, frozen["image_encoder"], global_frames, batch["known"], canvas_size)
        encoded |= {name: getattr(seen, name) for name in EVIDENCE}
    for name in ("black_mean", "black_std"):
        encoded[name] = repeat(encoded[name], "1 t h w c -> b t h w c", b=video.shape[0])
    return encoded


def make_conditions(
    encoded: LatentBatch,
    noise: dict[str, jax.Array] | None = None,
    drop_local: jax.Array | None = None,
    drop_global: jax.Array | None = None,
) -> DenoiserInputs:
    """What the network sees of a batch.

    noise: standard normal of the shape of each of SAMPLED that the batch has, with which all latents, known ones and
    global ones too, are samples of the autoencoder's posterior; without it they are its means.
    drop_local, drop_global: bool [B], which clips are wholly unknown, and which are told nothing of the whole video
    (global latents are zeros then, which still pass M3DDM's encoder): the two null conditions of guidance. None drops
    nothing.
    """
    parts = {name: value.astype(jnp.float32) for name, value in encoded.items() if name not in EVIDENCE}
    if drop_local is not None:
        drop = rearrange(drop_local, "b -> b 1 1 1 1")
        for part in ("mean", "std"):
            parts[f"masked_{part}"] = jnp.where(drop, parts[f"black_{part}"], parts[f"masked_{part}"])
        parts["mask"] = jnp.where(drop, 1.0, parts["mask"])

    def sample(name: str) -> Latents:
        mean = parts[f"{name}_mean"]
        return mean if noise is None else mean + parts[f"{name}_std"] * noise[name]

    guide: dict[str, Any] = {}
    if "global_mean" in parts:
        guide["global_latents"] = sample("global")
        if drop_global is not None:
            dropped = rearrange(drop_global, "b -> b 1 1 1 1")
            guide["global_latents"] = jnp.where(dropped, 0.0, guide["global_latents"])
    elif EVIDENCE[0] in encoded:
        guide["evidence"] = Evidence(**{name: encoded[name] for name in EVIDENCE})
        if drop_global is not None:
            guide["drop_global"] = drop_global
    return DenoiserInputs(
        latents=sample("latents"),
        mask=parts["mask"],
        masked_latents=sample("masked"),
        fps=parts["fps"],
        guide=guide,
    )


def null_guide(guide: dict[str, Any]) -> dict[str, Any]:
    """What a network is told of no video at all, as `guide` is of several: zeros to M3DDM, to GlobalPaint nothing."""
    return {name: jnp.zeros_like(value[:1]) for name, value in guide.items() if name == "global_latents"}


def codec_identity(codec: nn.Module, codec_variables: Variables) -> dict[str, Any]:
    """Kind and hyper-parameters of a codec and, where it has weights, their SHA-256: what latents depend on."""
    kind, hyper = registry.describe(codec)
    identity = {"kind": kind, **hyper}
    weights = flatten_dict(codec_variables, sep=".")
    if weights:
        digest = hashlib.sha256()
        for name in sorted(weights):
            value = np.asarray(weights[name], np.float32)
            digest.update(f"{name} {value.shape} ".encode())
            digest.update(np.ascontiguousarray(value))
        identity["weights"] = digest.hexdigest()
    return identity
