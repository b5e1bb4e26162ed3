"""Style fusion of gradients that other frames lend to a hole: ISVI's ASFN, against its discriminator."""

import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import common
from data.pipeline import StepDataset, make_batches
from data.sources import SourceSpec
from data.style_augmentation import lend_gradients
from m3ddm_jax.models import registry
from m3ddm_jax.recipes import base
from m3ddm_jax.training.gan_state import GanState, Optimizers, create_gan_state
from m3ddm_jax.training.optim import make_stepped_optimizer, skip_spikes
from m3ddm_jax.training.state import abstract, place, shardings_of
from m3ddm_jax.training.style_step import hole_error, make_style_step, make_style_tasks
from m3ddm_jax.training.validation import Completion
from m3ddm_jax.types import Variables, VideoBatch

_CONTRAST = 4.0  # of pictures of gradients, most of which are small


class StyleRecipe:
    """The Recipe of configs like configs.common.style()."""

    def __init__(self, config: ConfigDict):
        base.check_config(config, common.style(), built=("model", "discriminator"))
        self._config = config
        self.model = base.build_model(config.model, kind="asfn")
        self.discriminator = base.build_model(config.discriminator, kind="style_discriminator")
        check_style_sizes(config)
        self.frozen = {}
        self.fixed = {"model": base.described(self.model), "discriminator": base.described(self.discriminator)}
        train, section = config.train, config.style
        optimizers = (
            make_stepped_optimizer(rate, decay_every=train.decay_every, clip_norm=train.clip_norm)
            for rate in (train.learning_rate, section.learning_rate)
        )
        self.optimizers = Optimizers(*(skip_spikes(optimizer, train.spike_factor) for optimizer in optimizers))
        self.step = make_style_step(
            self.model,
            self.discriminator,
            self.optimizers,
            reconstruction=section.reconstruction,
            adversarial=section.adversarial,
            ema_decay=train.ema_decay,
            spike_patience=train.spike_patience,
        )

    def dataset(self, seed: int, sources: Sequence[SourceSpec] | None = None) -> StepDataset:
        """This process's part of every batch of single frames, with what is lent to them."""
        settings = base.clip_settings(self._config, sources) | base.batch_part(self._config, seed)
        return make_batches(**settings, extend=_lend)

    def abstract_state(self, rng: jax.Array, mesh: Mesh) -> GanState:
        """Shape, dtype and sharding of every array of the state."""

        def create(key: jax.Array) -> GanState:
            variables = (registry.init(module, key) for module in (self.model, self.discriminator))
            return create_gan_state(*variables, self.optimizers, key)

        return abstract(create, rng, mesh)

    def begin(self, rng: jax.Array, abstract_state: GanState, batch: VideoBatch, frozen: Variables) -> GanState:
        """The state before the first update: a random discriminator, and a random network or that of
        `train.init_from`."""
        del batch, frozen
        model_key, discriminator_key, run_key = jax.random.split(rng, 3)
        places = (
            {"params": abstract_state.params},
            {"params": abstract_state.discriminator_params, "spectral": abstract_state.spectral},
        )
        if folder := self._config.train.init_from:
            variables = place(base.load_variables(folder, self.model), places[0])
        else:
            init = functools.partial(base.init_for_relu, self.model)
            variables = jax.jit(init, out_shardings=shardings_of(places[0]))(model_key)
        init = functools.partial(registry.init, self.discriminator)
        discriminator_variables = jax.jit(init, out_shardings=shardings_of(places[1]))(discriminator_key)
        create = jax.jit(
            lambda *variables: create_gan_state(*variables, self.optimizers, run_key),
            out_shardings=shardings_of(abstract_state),
            donate_argnums=(0, 1),
        )
        return create(variables, discriminator_variables)

    def complete(self, state: GanState, batch: VideoBatch, frozen: Variables) -> Completion:
        """What the averaged weights make of lent gradients, as pictures: of those along x, then of those along y; and
        their mean error under the masks, beside that of what was lent."""
        del frozen
        task = make_style_tasks(batch)
        made = self.model.apply({"params": state.ema_params}, task.lent, task.mask)
        errors = {"hole_error": hole_error(made, task), "hole_error_lent": hole_error(task.lent, task)}
        made, truth = (_picture(x) for x in (made, task.truth))
        unknown = rearrange(task.mask > 0, "(b way) h w c -> b way h w c", way=2)
        return Completion(jnp.where(unknown, made, truth), truth, unknown, errors)

    def export(self, folder: str | os.PathLike, state: GanState) -> None:
        """Write the averaged weights as a model folder; like the published ones, they see blue first."""
        base.export_model(folder, self.model, {"params": state.ema_params}, dtype=self._config.train.export_dtype)


def _lend(rng: np.random.Generator, entry: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"lent": lend_gradients(rng, entry["video"][0], entry["mask"][0])}


def _picture(gradients: jax.Array) -> jax.Array:
    return base.to_uint8(_CONTRAST * rearrange(gradients[..., ::-1], "(b way) h w c -> b way h w c", way=2))


def check_style_sizes(config: ConfigDict) -> None:
    """Raise ValueError where frames do not fit the networks."""
    if config.data.num_frames != 1:
        raise ValueError(f"data.num_frames is {config.data.num_frames}: frames are seen one by one, 1 is accepted")
    base.check_clips(config, multiple=4)
