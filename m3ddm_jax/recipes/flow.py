"""Completion of optical flow under a mask: ISVI's IGFC."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import common
from data.masks import MaskSampler
from data.pipeline import StepDataset
from data.sources import SourceSpec
from data.synthetic.motion import make_motion_batches
from m3ddm_jax.models.raft import RAFT
from m3ddm_jax.recipes import base
from m3ddm_jax.training.encoding import codec_identity
from m3ddm_jax.training.flow_step import (
    FlowWeights,
    complete_flow,
    endpoint_error,
    make_estimate,
    make_flow_step,
    make_flow_tasks,
)
from m3ddm_jax.training.optim import make_stepped_optimizer, skip_spikes
from m3ddm_jax.training.state import TrainState, abstract_state, init_state, load_state
from m3ddm_jax.training.validation import Completion
from m3ddm_jax.types import Array, Variables, VideoBatch
from m3ddm_jax.weights import load_model

MOTION = "motion"
"""The kind of source whose clips come with their exact flow (data.synthetic.motion)."""

# Directions, (dx, dy), in which red, green and blue grow in pictures of flow: a third of a turn apart.
_COLOURS = ((1.0, 0.0), (-0.5, 0.75**0.5), (-0.5, -(0.75**0.5)))


class FlowRecipe:
    """The Recipe of configs like configs.common.flow().

    Clips are scenes with exact flow; or real ones, whose flow a frozen RAFT tells, which is `frozen` then.
    """

    def __init__(self, config: ConfigDict):
        base.check_config(config, common.flow(), built=("model",))
        self._config = config
        self.model = base.build_model(config.model, kind="igfc")
        check_flow_sizes(config, self.model)
        self._estimator, self.frozen, identity = load_estimator(config)
        self.fixed = {"model": base.described(self.model)} | identity
        train = config.train
        optimizer = make_stepped_optimizer(
            train.learning_rate, decay_every=train.decay_every, clip_norm=train.clip_norm
        )
        self.optimizer = skip_spikes(optimizer, train.spike_factor)
        self._init = functools.partial(base.init_for_relu, self.model)
        self.step = make_flow_step(
            self.model,
            self.optimizer,
            weights=make_weights(config.flow.weights),
            ema_decay=config.train.ema_decay,
            spike_patience=config.train.spike_patience,
            estimator=self._estimator,
            iterations=config.flow.iterations,
        )

    def dataset(self, seed: int, sources: Sequence[SourceSpec] | None = None) -> StepDataset:
        """This process's part of every batch of clips; scenes with exact flow are others for each seed."""
        if self._estimator is not None:
            return base.make_clips(self._config, seed, sources)
        data = self._config.data.to_dict()
        return make_motion_batches(
            **{name: data[name] for name in ("num_frames", "buckets", "num_threads")},
            workers=0 if sources else data["workers"],
            interval=self.model.interval,
            masks=MaskSampler(**data["masks"]),
            **base.batch_part(self._config, seed),
        )

    def abstract_state(self, rng: jax.Array, mesh: Mesh) -> TrainState:
        """Shape, dtype and sharding of every array of the state."""
        return abstract_state(self._init, self.optimizer, rng, mesh)

    def begin(self, rng: jax.Array, abstract_state: TrainState, batch: VideoBatch, frozen: Variables) -> TrainState:
        """The state before the first update: random, or the network of `train.init_from`."""
        del batch, frozen
        if folder := self._config.train.init_from:
            return load_state(base.load_variables(folder, self.model), self.optimizer, rng, abstract_state)
        return init_state(self._init, self.optimizer, rng, abstract_state)

    def complete(self, state: TrainState, batch: VideoBatch, frozen: Variables) -> Completion:
        """What the averaged weights make of flow, as pictures of the middle one of each clip; and its endpoint error
        under the masks, in pixels, beside that of the membrane alone."""
        estimate = make_estimate(self._estimator, self._config.flow.iterations, frozen)
        task = make_flow_tasks(batch, self.model.interval, estimate)
        flow, *_ = complete_flow(self.model, {"params": state.ema_params}, task)
        scale = jnp.linalg.norm(task.truth, axis=-1, keepdims=True).max(axis=(1, 2), keepdims=True)
        made, truth = (flow_picture(x, scale)[:, None] for x in (flow, task.truth))
        unknown = task.mask[:, None] > 0
        errors = {
            "endpoint_error": endpoint_error(flow, task),
            "endpoint_error_filled": endpoint_error(task.middle, task),
        }
        return Completion(jnp.where(unknown, made, truth), truth, unknown, errors)

    def export(self, folder: str | os.PathLike, state: TrainState) -> None:
        """Write the averaged weights as a model folder."""
        base.export_model(folder, self.model, {"params": state.ema_params}, dtype=self._config.train.export_dtype)


def check_flow_sizes(config: ConfigDict, model: nn.Module) -> None:
    """Raise ValueError where clips do not fit the model."""
    frames = model.interval * (model.num_frames - 1) + 2
    if config.data.num_frames != frames:
        raise ValueError(
            f"data.num_frames is {config.data.num_frames}: {frames} are accepted, for {model.num_frames} flows that "
            f"are {model.interval} frames apart"
        )
    base.check_clips(config, multiple=8)


def load_estimator(config: ConfigDict) -> tuple[RAFT | None, Variables, dict[str, Any]]:
    """(the network that tells what true flow is, its variables as `frozen`, what tells it from others); of a config
    whose clips come with their flow, (None, {}, {}).

    Raises ValueError where clips come without and there is no such network, and where it is of another kind.
    """
    kinds, folder = {source.kind for source in base.list_sources(config)}, config.flow.raft
    if not folder:
        if kinds != {MOTION}:
            found = ", ".join(sorted(kinds - {MOTION})) or "none"
            raise ValueError(
                f"flow.raft is empty and data.sources are of the kind {found}, which tells no flow: name the model "
                f"folder of a RAFT, or have sources of the kind {MOTION} alone"
            )
        return None, {}, {}
    if MOTION in kinds:
        raise ValueError(f"flow.raft is {folder!r} and sources of the kind {MOTION} need none: have one or the other")
    estimator, variables = load_model(folder, kind="raft")
    return estimator, {"estimator": variables}, {"estimator": codec_identity(estimator, variables)}


def make_weights(section: ConfigDict) -> FlowWeights:
    """The weights of the loss. Raises ValueError for unknown, missing or negative ones."""
    weights, known = section.to_dict(), FlowWeights.__dataclass_fields__
    if weights.keys() != known.keys():
        raise ValueError(f"flow.weights are {', '.join(weights)}: those of {', '.join(known)} are expected")
    return FlowWeights(**weights)


def flow_picture(flow: Array, scale: Array) -> jax.Array:
    """Flow [..., 2] as colours, uint8 [..., 3]: grey where nothing moves, colours full at `scale` pixels.

    A linear map, so that errors of colours are errors of flow.
    """
    return base.to_uint8(flow @ jnp.array(_COLOURS).T / jnp.maximum(scale, 1e-6))
