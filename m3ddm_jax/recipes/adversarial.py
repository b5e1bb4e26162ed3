"""Adversarial training of a video completing network with the hierarchical discriminator: IN2OUT.

What is fine-tuned is an inpainting network (E2FGVI) or, as an extension of this project, a masked diffusion model.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import common
from data.pipeline import StepDataset
from data.sources import SourceSpec
from m3ddm_jax.losses.outpainting import OutpaintingWeights
from m3ddm_jax.models import registry
from m3ddm_jax.parallel.mesh import replicated
from m3ddm_jax.recipes import base
from m3ddm_jax.recipes.diffusion import DiffusionRecipe
from m3ddm_jax.training.encoding import codec_identity, to_unit_range
from m3ddm_jax.training.gan_state import GanState, Optimizers, create_gan_state
from m3ddm_jax.training.gan_step import AdversarialSettings, composite, make_gan_step
from m3ddm_jax.training.generators import MakeGenerator, diffusion_generator, e2fgvi_generator
from m3ddm_jax.training.optim import make_gan_optimizer, skip_spikes
from m3ddm_jax.training.state import abstract, place, shardings_of
from m3ddm_jax.training.validation import Completion
from m3ddm_jax.types import Variables, VideoBatch
from m3ddm_jax.weights.discriminator import with_tpatchgan
from m3ddm_jax.weights.torch_files import read_state_dict

_FLOW_NETWORK = "update_spynet"


class Trained(Protocol):
    """A network as this recipe trains it; the other members are as `base.Recipe` says.

    model: the network; make_generator: see `training.generators`.
    """

    model: nn.Module
    frozen: Variables
    fixed: dict[str, Any]
    make_generator: MakeGenerator

    def complete(self, state: GanState, batch: VideoBatch, frozen: Variables) -> Completion: ...

    def export(self, folder: str | os.PathLike, state: GanState) -> None: ...


class Inpainter:
    """E2FGVI; `frozen` is the flow network that `train.init_from` holds, where flow has a weight."""

    def __init__(self, config: ConfigDict):
        base.check_config(config, common.adversarial(), built=("model", "discriminator"))
        self.model = base.build_model(config.model)
        rows, columns = self.model.size_multiple
        for height, width in config.data.buckets:
            if height % rows or width % columns:
                raise ValueError(
                    f"bucket ({height}, {width}): multiples of {rows} and {columns} are accepted, as the windows are"
                )
        self._config, flow = config, config.adversarial.weights.flow > 0
        self.frozen, self.fixed = {}, {"model": base.described(self.model)}
        if flow:
            if not config.train.init_from:
                raise ValueError(
                    "weights.flow is above 0 and train.init_from is empty: name the folder of a trained model, whose "
                    "flow network tells what the flow is, or set 0"
                )
            initial = base.load_variables(config.train.init_from, self.model)
            self.frozen = {"params": {_FLOW_NETWORK: initial["params"][_FLOW_NETWORK]}}
            self.fixed["flow"] = codec_identity(self.model, self.frozen)["weights"]
        self.make_generator = e2fgvi_generator(self.model, flow=flow)

    def complete(self, state: GanState, batch: VideoBatch, frozen: Variables) -> Completion:
        """What the averaged weights make of the unknown part of clips, of their local frames."""
        num_local = self._config.data.num_frames
        unknown = batch["mask"] > 0
        masked_frames = jnp.where(unknown, 0.0, to_unit_range(batch["video"]))
        made, _ = self.model.apply({"params": state.ema_params}, masked_frames, num_local=num_local, local_only=True)
        truth, unknown = batch["video"][:, :num_local], unknown[:, :num_local]
        return Completion(composite(base.to_uint8(made), truth, unknown), truth, unknown)

    def export(self, folder: str | os.PathLike, state: GanState) -> None:
        """Write the averaged weights as a model folder, which the outpainter in2out reads."""
        base.export_model(folder, self.model, {"params": state.ema_params}, dtype=self._config.train.export_dtype)


class Diffuser:
    """A masked diffusion model, as the diffusion recipe completes clips and exports it; `frozen` is its autoencoder."""

    def __init__(self, config: ConfigDict):
        base.check_config(config, common.adversarial_diffusion(), built=("model", "discriminator", "autoencoder"))
        if config.data.references:
            raise ValueError(f"data.references is {config.data.references}: a diffusion model has none, 0 is accepted")
        self._recipe = DiffusionRecipe(_as_diffusion(config))
        self.model, self.frozen, self.fixed = self._recipe.model, self._recipe.frozen, self._recipe.fixed
        self.complete, self.export = self._recipe.complete, self._recipe.export
        self.make_generator = diffusion_generator(
            self._recipe.loss,
            self._recipe.encoders.autoencoder,
            self._recipe.schedule.num_timesteps,
            unknown=config.diffusion.unknown,
            drop_global=config.train.drop_global,
            max_timestep=config.adversarial.max_timestep,
        )


def _as_diffusion(config: ConfigDict) -> ConfigDict:
    """The config of the diffusion recipe with what a config of this one says."""
    plain = common.base()
    for section in ("model", "autoencoder", "diffusion", "data", "sample"):
        plain[section] = config[section]
    plain.train.update({name: value for name, value in config.train.items() if name in plain.train})
    return plain


_KINDS: dict[str, type[Trained]] = {"e2fgvi": Inpainter, "m3ddm": Diffuser}


class AdversarialRecipe:
    """The Recipe of configs like configs.common.adversarial() and adversarial_diffusion()."""

    def __init__(self, config: ConfigDict):
        kind = base.check_kind(config.get("model", {}).get("kind"), _KINDS)
        self._config = config
        self._trained = _KINDS[kind](config)
        self.model, self.frozen = self._trained.model, self._trained.frozen
        self.complete, self.export = self._trained.complete, self._trained.export
        self.discriminator = base.build_model(config.discriminator)
        self.fixed = self._trained.fixed | {"discriminator": base.described(self.discriminator)}
        settings = make_settings(config)
        check_tubes(config, self.discriminator.tube_size * (2 if settings.zoomed_tubes else 1))
        self.optimizers = make_optimizers(config)
        self.step = make_gan_step(
            self._trained.make_generator,
            self.discriminator,
            self.optimizers,
            num_local=config.data.num_frames,
            settings=settings,
            spike_patience=config.train.spike_patience,
        )

    def dataset(self, seed: int, sources: Sequence[SourceSpec] | None = None) -> StepDataset:
        """This process's part of every batch of clips."""
        return base.make_clips(self._config, seed, sources)

    def abstract_state(self, rng: jax.Array, mesh: Mesh) -> GanState:
        """Shape, dtype and sharding of every array of the state."""

        def create(key: jax.Array) -> GanState:
            variables = (registry.init(module, key) for module in (self.model, self.discriminator))
            return create_gan_state(*variables, self.optimizers, key)

        return abstract(create, rng, mesh)

    def begin(self, rng: jax.Array, abstract_state: GanState, batch: VideoBatch, frozen: Variables) -> GanState:
        """The state before the first update: the generator of `train.init_from`, or for E2FGVI a random one; a random
        discriminator, or one with the T-PatchGAN of `adversarial.discriminator_from`.

        Raises ValueError where these do not fit, and for a diffusion model without weights to start from.
        """
        del batch, frozen
        generator_key, discriminator_key, run_key = jax.random.split(rng, 3)
        create = jax.jit(
            lambda *variables: create_gan_state(*variables, self.optimizers, run_key),
            out_shardings=shardings_of(abstract_state),
            donate_argnums=(0, 1),
        )
        return create(
            self._begin_generator(generator_key, abstract_state),
            self._begin_discriminator(discriminator_key, abstract_state),
        )

    def _begin_generator(self, key: jax.Array, abstract_state: GanState) -> Variables:
        places = {
            name: getattr(abstract_state, name) for name in ("params", "batch_stats") if getattr(abstract_state, name)
        }
        if folder := self._config.train.init_from:
            return place(base.load_variables(folder, self.model), places)
        if "batch_stats" in places:
            raise ValueError("train.init_from is empty: a diffusion model is only fine-tuned, name a model folder")
        return jax.jit(functools.partial(registry.init, self.model), out_shardings=shardings_of(places))(key)

    def _begin_discriminator(self, key: jax.Array, abstract_state: GanState) -> Variables:
        places = {"params": abstract_state.discriminator_params, "spectral": abstract_state.spectral}
        init = functools.partial(registry.init, self.discriminator)
        path = self._config.adversarial.discriminator_from
        if not path:
            return jax.jit(init, out_shardings=shardings_of(places))(key)
        mesh = jax.tree.leaves(places)[0].sharding.mesh
        random = jax.device_get(jax.jit(init, out_shardings=replicated(mesh))(key))
        return place(with_tpatchgan(random, read_state_dict(path)), places)


def make_settings(config: ConfigDict) -> AdversarialSettings:
    """What a config says of how the two networks are set against each other. Raises ValueError for unknown weights."""
    section = config.adversarial.to_dict()
    weights, known = section["weights"], OutpaintingWeights.__dataclass_fields__
    if weights.keys() != known.keys():
        raise ValueError(f"adversarial.weights are {', '.join(weights)}: those of {', '.join(known)} are expected")
    names = AdversarialSettings.__dataclass_fields__.keys() & section.keys() - {"weights"}
    return AdversarialSettings(
        weights=OutpaintingWeights(**weights),
        ema_decay=config.train.ema_decay,
        **{name: section[name] for name in names},
    )


def make_optimizers(config: ConfigDict) -> Optimizers:
    """Of both networks. A diffusion model has no flow network that could be slower."""
    train, section = config.train, config.adversarial
    # The generator's updates are counted from the end of the warm-up.
    decay_at = max(1, train.decay_at - section.discriminator_warmup) if train.decay_at else 0
    generator = make_gan_optimizer(
        train.learning_rate,
        decay_at=decay_at,
        clip_norm=train.clip_norm,
        factors={_FLOW_NETWORK: section.flow_rate},
    )
    discriminator = make_gan_optimizer(section.learning_rate, decay_at=train.decay_at)
    return Optimizers(*(skip_spikes(optimizer, train.spike_factor) for optimizer in (generator, discriminator)))


def check_tubes(config: ConfigDict, side: int) -> None:
    """Raise ValueError for clips that hold no tube of `side` pixels, or batches in parts, which this recipe has not."""
    if config.train.accumulate != 1:
        raise ValueError(
            f"accumulate is {config.train.accumulate}: adversarial training has whole batches, 1 is accepted"
        )
    for bucket in config.data.buckets:
        if min(bucket) < side:
            raise ValueError(
                f"bucket {tuple(bucket)} holds no tube of {side}x{side} pixels: sides from {side} on are accepted; "
                "discriminator.tube_size and adversarial.zoomed_tubes (of twice that side) say how large tubes are"
            )
