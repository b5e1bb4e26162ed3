"""Masked video diffusion in the latents of a frozen autoencoder: M3DDM, and the two stages of GlobalPaint."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import common
from data.latents import LatentFolder, latent_folders, make_latent_batches
from data.pipeline import StepDataset
from data.sources import SourceSpec
from m3ddm_jax.flow.region_fill import hide
from m3ddm_jax.models import registry
from m3ddm_jax.models.autoencoder import latent_frames, pixel_mask
from m3ddm_jax.models.openclip import OpenCLIPVision
from m3ddm_jax.pipelines import globalpaint, m3ddm
from m3ddm_jax.pipelines.denoiser import make_diffusion, make_sampler_of, make_solver_of
from m3ddm_jax.pipelines.globalpaint import INTERPOLATION, KEY_FRAMES
from m3ddm_jax.pipelines.sampler import Conditions
from m3ddm_jax.recipes import base
from m3ddm_jax.training.checkpoint import check_fit
from m3ddm_jax.training.diffusion_step import (
    calibrated_batch_stats,
    has_initial_batch_stats,
    make_diffusion_loss,
    make_diffusion_step,
)
from m3ddm_jax.training.encoding import (
    DenoiserInputs,
    Encoders,
    LatentBatch,
    codec_identity,
    decode_latents,
    encode_batch,
    encode_frames,
    make_conditions,
    null_guide,
    to_unit_range,
)
from m3ddm_jax.training.optim import AdamSettings, make_optimizer, scaled_to_batch, skip_spikes, staged_rate
from m3ddm_jax.training.state import TrainState, abstract_state, init_state, load_state, shardings_of
from m3ddm_jax.training.validation import Completion, losses_by_timestep
from m3ddm_jax.types import Codec, Denoiser, Latents, Variables, VideoBatch
from m3ddm_jax.weights import load_model

# What a checkpoint may not differ in: the task that the network has learnt.
_TASK = ("schedule", "zero_terminal_snr", "shift", "prediction", "unknown")

BUILT = ("model", "autoencoder", "image_encoder")
"""The sections that describe a network."""


class DiffusionRecipe:
    """The Recipe of configs like configs.common.base() and globalpaint(); its batches hold clips, or what frozen
    networks made of clips.

    model, optimizer: what is trained, and what trains it. encoders: the frozen networks that it sees clips through;
    their variables are `frozen`.
    """

    def __init__(self, config: ConfigDict):
        kind = base.check_kind(config.get("model", {}).get("kind"), registry.kinds(Denoiser))
        two_stages = kind == "globalpaint"
        expected = common.globalpaint() if two_stages else common.base()
        base.check_config(config, expected, built=BUILT)
        self._config = config
        self._stage = {"stage": check_stage(config.stage)} if two_stages else {}
        self.model = base.build_model(config.model)
        self.encoders, self.frozen = build_encoders(config, self.model)
        check_sizes(config, self.model, self.encoders)
        base.check_mesh(config.mesh, self._mesh_limits())
        train = config.train
        learning_rate, warmup_steps = scaled_to_batch(
            train.learning_rate, train.warmup_steps, train.batch_size, train.base_batch_size
        )
        optimizer = make_optimizer(
            learning_rate,
            warmup_steps=warmup_steps,
            weight_decay=train.weight_decay,
            clip_norm=train.clip_norm,
            rate=staged_rate(train.pretrained_rate, train.frozen_steps) if two_stages else None,
            adam=make_adam(train.optimizer),
            steps=train.steps,
        )
        self.optimizer = skip_spikes(optimizer, train.spike_factor)
        # What tells the frozen networks from others.
        self._identities = {
            name: codec_identity(getattr(self.encoders, name), variables) for name, variables in self.frozen.items()
        }
        self.fixed = {
            "model": base.described(self.model),
            "diffusion": {name: config.diffusion[name] for name in _TASK},
            **self._identities,
            **self._stage,
        }
        self._init = functools.partial(registry.init, self.model)
        diffusion = make_diffusion(config.diffusion)
        self.schedule = diffusion.schedule
        self.loss = make_diffusion_loss(
            self.model,
            diffusion.schedule,
            prediction=diffusion.prediction,
            min_snr_gamma=config.diffusion.min_snr_gamma or None,
            known_weight=config.diffusion.known_weight,
        )
        self.step = make_diffusion_step(
            self.loss,
            self.encoders,
            diffusion.schedule.num_timesteps,
            self.optimizer,
            unknown=config.diffusion.unknown,
            drop_local=train.drop_local,
            drop_global=train.drop_global,
            accumulate=train.accumulate,
            ema_decay=train.ema_decay,
            spike_patience=train.spike_patience,
        )
        # What ships: the exported folder outpaints with these settings.
        settings = globalpaint.GlobalpaintSettings if two_stages else m3ddm.M3ddmSettings
        self._settings = settings.make(config.sample.to_dict())
        self._stochastic = make_solver_of(diffusion, self._settings).noise is not None
        self._sample = make_sampler_of(self.model, diffusion, self._settings)

    def _mesh_limits(self) -> Mapping[str, int]:
        return self.model.mesh_limits(latent_frames(self.encoders.autoencoder, self._config.data.num_frames))

    def dataset(self, seed: int, sources: Sequence[SourceSpec] | None = None) -> StepDataset:
        """This process's part of every batch: of latents, or of pixels. Raises ValueError where folders of latents were
        not made as the config says, or by another autoencoder."""
        folders = latent_folders(sources or base.list_sources(self._config))
        if not folders:
            return base.make_clips(self._config, seed, sources)
        here = self.latent_facts()
        for path, _ in folders:
            there = with_added(LatentFolder(path).facts, here, path)
            there = {name: there[name] for name in here if name in there}
            check_fit(f"folder of latents {path}", flatten_dict(there, sep="."), flatten_dict(here, sep="."))
        data, part = self._config.data, base.batch_part(self._config, seed)
        loading = {"num_threads": data.num_threads, "workers": 0 if sources else data.workers}
        return make_latent_batches(folders, buckets=data.buckets, **loading, **part)

    def latent_facts(self) -> dict[str, Any]:
        """What latents depend on besides chance and the videos, as plain values."""
        data = self._config.data.to_dict()
        facts = {
            name: value
            for name, value in data.items()
            if name not in ("sources", "validation", "num_threads", "workers")
        }
        facts |= {**self._identities, "unknown": self._config.diffusion.unknown}
        return json.loads(json.dumps(facts))

    def abstract_state(self, rng: jax.Array, mesh: Mesh) -> TrainState:
        """Shape, dtype and sharding of every array of the state. Raises ValueError where the mesh splits too finely."""
        base.check_mesh(mesh.shape, self._mesh_limits())
        return abstract_state(self._init, self.optimizer, rng, mesh)

    def begin(
        self, rng: jax.Array, abstract_state: TrainState, batch: VideoBatch | LatentBatch, frozen: Variables
    ) -> TrainState:
        """The state before the first update; BatchNorm statistics that nothing has set are calibrated on `batch`."""
        if folder := self._config.train.init_from:
            state = load_state(base.load_variables(folder, self.model), self.optimizer, rng, abstract_state)
        else:
            state = init_state(self._init, self.optimizer, rng, abstract_state)
        if not has_initial_batch_stats(state):
            return state

        def calibrate(state: TrainState, batch: VideoBatch | LatentBatch, frozen: Variables) -> Any:
            encoded = encode_batch(self.encoders, frozen, batch)
            return calibrated_batch_stats(self.model, state, make_conditions(encoded).guide["global_latents"])

        calibrate = jax.jit(calibrate, out_shardings=shardings_of(abstract_state.batch_stats))
        return state.replace(batch_stats=calibrate(state, batch, frozen))

    def complete(self, state: TrainState, batch: VideoBatch | LatentBatch, frozen: Variables) -> Completion:
        """What the averaged weights make of the unknown part of clips, or of the clips that latents stand for; and the
        training loss on them without null conditions, by bins of timesteps."""
        variables = {"params": state.ema_params, "batch_stats": state.batch_stats}
        encoded = encode_batch(self.encoders, frozen, batch, self._config.diffusion.unknown)
        seen = make_conditions(encoded)
        encode_context = functools.partial(self.model.apply, variables, method="encode_context")
        conditions = Conditions(
            mask=seen.mask,
            masked_latents=seen.masked_latents,
            guides=jnp.max(seen.mask, axis=(2, 3, 4)) == 0,
            fps=seen.fps,
            context=encode_context(**seen.guide),
            null_context=encode_context(**null_guide(seen.guide)),
            black=encoded["black_mean"][0],
        )
        codec, shape = self.encoders.autoencoder, seen.latents.shape
        noise = self._settings.noise_scale * jax.random.normal(jax.random.key(0), shape)
        fresh = (self._settings.steps, *shape)
        step_noise = jax.random.normal(jax.random.key(1), fresh) if self._stochastic else None
        latents = self._sample(variables, self._guess(batch, seen, frozen), noise, conditions, step_noise)
        made = base.to_uint8(decode_latents(codec, frozen["autoencoder"], latents))
        if "video" in batch:
            video, unknown = batch["video"], batch["mask"] > 0
        else:
            video = base.to_uint8(decode_latents(codec, frozen["autoencoder"], seen.latents))
            unknown = pixel_mask(codec, seen.mask) > 0
        losses = losses_by_timestep(self.loss, state, seen, self.schedule.num_timesteps)
        return Completion(jnp.where(unknown, made, video), video, unknown, losses)

    def _guess(self, batch: VideoBatch | LatentBatch, seen: DenoiserInputs, frozen: Variables) -> Latents:
        """Where sampling starts: the known pixels, continued smoothly; of latents what the network sees of them."""
        if "video" not in batch or self._config.diffusion.unknown == "filled":
            return seen.masked_latents
        filled = hide(to_unit_range(batch["video"]), batch["mask"], "filled")
        mean, _ = encode_frames(self.encoders.autoencoder, frozen["autoencoder"], filled)
        return mean

    def export(self, folder: str | os.PathLike, state: TrainState) -> None:
        """Write the averaged weights as a model folder that outpaints as the config's sample section says."""
        base.export_model(
            folder,
            self.model,
            {"params": state.ema_params, "batch_stats": state.batch_stats},
            dtype=self._config.train.export_dtype,
            settings={name: self._config[name].to_dict() for name in ("diffusion", "sample")} | self._stage,
            **{name: (getattr(self.encoders, name), variables) for name, variables in self.frozen.items()},
        )


def with_added(there: dict[str, Any], here: dict[str, Any], path: str) -> dict[str, Any]:
    """The facts of a folder of latents, with the fields of masks that an earlier version did not have."""
    added = {name: value for name, value in here["masks"].items() if name not in there.get("masks", {})}
    if not added or "masks" not in there:
        return there
    logging.warning("folder of latents %s: made before data.masks had %s", path, ", ".join(added))
    return there | {"masks": there["masks"] | added}


def make_adam(section: ConfigDict) -> AdamSettings:
    """The settings of a config's optimizer. Raises ValueError for fields and values that are not accepted."""
    known, found = AdamSettings.__dataclass_fields__.keys(), section.to_dict()
    if found.keys() != known:
        raise ValueError(f"train.optimizer has {', '.join(found)}: those of {', '.join(known)} are expected")
    try:
        return AdamSettings(**found)
    except ValueError as error:
        raise ValueError(f"train.optimizer: {error}") from None


def build_encoders(config: ConfigDict, model: Denoiser) -> tuple[Encoders, Variables]:
    """The frozen networks that a model sees clips through, and their variables by name."""
    codec, codec_variables = build_codec(config.autoencoder, model.dtype)
    if model.global_condition != "patches":
        return Encoders(codec, global_latents=model.global_condition == "latents"), {"autoencoder": codec_variables}
    encoder, variables = build_image_encoder(config.image_encoder, model.dtype)
    return Encoders(codec, encoder, global_latents=False), {"autoencoder": codec_variables, "image_encoder": variables}


def build_codec(section: ConfigDict, dtype: jnp.dtype) -> tuple[nn.Module, Variables]:
    """The frozen autoencoder: one without weights by its kind, or the model folder of a trained one, which computes in
    `dtype`."""
    if "folder" not in section:
        return registry.build(**section.to_dict()), {}
    codec, variables = load_model(section.folder, kind=registry.kinds(Codec))
    return codec.clone(dtype=dtype) if hasattr(codec, "dtype") else codec, variables


def build_image_encoder(section: ConfigDict, dtype: jnp.dtype) -> tuple[OpenCLIPVision, Variables]:
    """The frozen vision tower, which computes in `dtype`: of a model folder, or of its kind and hyper-parameters, with
    random weights that follow from `seed`. Raises ValueError for another kind of network."""
    if "folder" in section:
        encoder, variables = load_model(section.folder, kind="openclip")
    else:
        seed = section.get("seed", 0)
        plain = {name: value for name, value in section.items() if name != "seed"}
        encoder = base.build_model(ConfigDict(plain), kind="openclip")
        variables = jax.device_get(jax.jit(functools.partial(registry.init, encoder))(jax.random.key(seed)))
    return encoder.clone(dtype=dtype), variables


def check_stage(stage: str) -> str:
    """What a model of GlobalPaint is for. Raises ValueError where it is no stage."""
    if stage not in (KEY_FRAMES, INTERPOLATION):
        raise ValueError(f"stage {stage!r} is unknown: {KEY_FRAMES} and {INTERPOLATION} are accepted")
    return stage


def check_sizes(config: ConfigDict, model: Denoiser, encoders: Encoders) -> None:
    """Raise ValueError where network, encoders and clips do not fit each other."""
    codec, encoder, data = encoders.autoencoder, encoders.image_encoder, config.data
    multiple = codec.spatial_factor * model.size_multiple
    latent_frames(codec, data.num_frames)
    for bucket in data.buckets:
        if any(side % multiple for side in bucket):
            raise ValueError(f"bucket {tuple(bucket)}: both sides must be multiples of {multiple} pixels")
    if encoders.global_latents and data.global_size % codec.spatial_factor:
        raise ValueError(f"global_size is {data.global_size}: a multiple of {codec.spatial_factor} is accepted")
    if encoder is not None and (data.global_fit, data.global_size) != ("pad", encoder.image_size):
        raise ValueError(
            f"global_fit is {data.global_fit!r} and global_size {data.global_size}: the image encoder takes 'pad' and "
            f"{encoder.image_size}"
        )
    if encoder is not None and model.patch_width != encoder.width:
        raise ValueError(f"the model's patch_width is {model.patch_width}, the image encoder's width {encoder.width}")
    if data.references:
        raise ValueError(f"references is {data.references}: a diffusion model has none, 0 is accepted")
    if model.latent_channels != codec.latent_channels:
        raise ValueError(f"the model has {model.latent_channels} latent channels, the codec {codec.latent_channels}")
