"""Train a model: python -m m3ddm_jax.train --config=configs/tiny.py --workdir=DIR [--config.any.field=value].

A run goes on from the newest checkpoint in its workdir, on whatever mesh the config names by then. The workdir gets
checkpoints/, metrics.jsonl, tensorboard/ and, at the end or at SIGTERM, model/: the averaged weights for outpainting.
"""

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from einops import rearrange, repeat
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from configs import common
from data.latents import LatentFolder, latent_folders, make_latent_batches
from data.masks import MaskSampler
from data.pipeline import make_batches
from m3ddm_jax import command
from m3ddm_jax.diffusion.guidance import Guidance
from m3ddm_jax.diffusion.schedule import Schedule, make_schedule
from m3ddm_jax.diffusion.solvers import make_solver
from m3ddm_jax.models import registry
from m3ddm_jax.parallel.mesh import check_batch_size, make_mesh, put_batch, replicated
from m3ddm_jax.pipelines.sampler import Conditions, make_sampler
from m3ddm_jax.training import loop
from m3ddm_jax.training.checkpoint import Checkpoints, check_fit
from m3ddm_jax.training.diffusion_step import calibrated_batch_stats, has_initial_batch_stats, make_diffusion_step
from m3ddm_jax.training.encoding import (
    LatentBatch,
    codec_identity,
    decode_latents,
    encode_batch,
    make_conditions,
)
from m3ddm_jax.training.optim import make_optimizer
from m3ddm_jax.training.state import TrainState, abstract_state, create_state, init_state
from m3ddm_jax.types import Latents, Variables, VideoBatch
from m3ddm_jax.video import FrameSink
from m3ddm_jax.weights import load_model, save_model

# Of the sample videos: clips below one another, and frames per second.
_PREVIEWED, _PREVIEW_FPS = 4, 8.0


class Networks(NamedTuple):
    """What is trained, what trains it, and the frozen codec with its weights and what tells it from others."""

    model: nn.Module
    optimizer: optax.GradientTransformation
    codec: nn.Module
    codec_variables: Variables
    codec_identity: dict[str, Any]


def train(config: ConfigDict, workdir: str, devices: Sequence[jax.Device] | None = None) -> TrainState:
    """Train as a config of configs/ says, on all devices or those given; returns the last state.

    Raises ValueError where config, data or checkpoint do not fit, FloatingPointError where training diverges.
    """
    # What is trained, on what, where.
    check_config(config)
    folder = pathlib.Path(workdir)
    mesh = make_mesh(**config.mesh, devices=devices)
    check_batch_size(mesh, config.train.batch_size, config.train.accumulate)
    cadence = make_cadence(config.train)
    networks = build_networks(config)
    check_latents(config, networks)
    train_step = make_step(config, networks)
    dataset = make_dataset(config, config.train.seed)
    batches = iter(dataset)
    put = functools.partial(put_batch, mesh)

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(loop.StopRequest())
        stack.enter_context(jax.set_mesh(mesh))
        codec_variables = jax.device_put(networks.codec_variables, replicated(mesh))
        networks = networks._replace(codec_variables=codec_variables)

        # The state and its place in the data: those of the newest checkpoint, else the beginning.
        rng = jax.random.key(config.train.seed)
        like = abstract_state(functools.partial(registry.init, networks.model), networks.optimizer, rng, mesh)
        checkpoints = Checkpoints(
            folder / "checkpoints",
            keep=config.train.keep,
            fixed=fixed_values(config, networks),
            config=config.to_dict(),
            mesh=mesh,
        )
        stack.callback(checkpoints.close)
        if checkpoints.latest_step() is None:
            state = begin(config, networks, rng, like, put(next(iter(dataset))), mesh)
        else:
            state, examples_seen = checkpoints.restore(like)
            batches.set_state({"next_index": steps_drawn(examples_seen, config.train.batch_size)})

        if jax.process_index() == 0:
            size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            print(f"{size:,} parameters on {mesh.size} device(s), from step {int(state.step)}", flush=True)

        # The updates.
        shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
        jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
        frames_per_step = config.train.batch_size * config.data.num_frames
        log = loop.MetricsLog(folder, start_step=int(state.step), cadence=cadence, frames_per_step=frames_per_step)
        stack.callback(log.close)
        state = loop.run(
            state,
            lambda state, batch: jitted(state, batch, codec_variables),
            batches,
            put,
            cadence=cadence,
            checkpoints=checkpoints,
            examples_seen=lambda: batches.get_state()["next_index"] * config.train.batch_size,
            log=log,
            sample=make_sample_hook(config, networks, put, folder / "samples", log) if cadence.sample_every else None,
            stop=stop,
        )
        checkpoints.wait()
        export(folder / "model", config, networks, state)
    return state


def begin(
    config: ConfigDict,
    networks: Networks,
    rng: jax.Array,
    like: TrainState,
    batch: VideoBatch | LatentBatch,
    mesh: Mesh,
) -> TrainState:
    """The state before the first update, random or of `train.init_from`; BatchNorm statistics that nothing has set yet
    are calibrated on a batch."""
    if config.train.init_from:
        state = load_state(config.train.init_from, networks, rng, like)
    else:
        state = init_state(functools.partial(registry.init, networks.model), networks.optimizer, rng, like)
    if not has_initial_batch_stats(state):
        return state

    def calibrate(state: TrainState, batch: VideoBatch | LatentBatch, codec_variables: Variables) -> Any:
        encoded = encode_batch(networks.codec, codec_variables, batch)
        return calibrated_batch_stats(networks.model, state, make_conditions(encoded).global_latents)

    calibrate = jax.jit(calibrate, out_shardings=replicated(mesh))
    return state.replace(batch_stats=calibrate(state, batch, networks.codec_variables))


def load_state(folder: str, networks: Networks, rng: jax.Array, like: TrainState) -> TrainState:
    """The state before the first update, with a model folder's parameters and BatchNorm statistics, which go from the
    host to their places on the mesh one by one. Raises ValueError where the folder holds another model than the config.
    """
    module, variables = load_model(folder)
    check_fit(f"model folder {folder}", described(module), described(networks.model))

    def place(value: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.make_array_from_callback(value.shape, leaf.sharding, lambda index: value[index])

    placed = {name: jax.tree.map(place, variables[name], getattr(like, name)) for name in ("params", "batch_stats")}
    _, run_key = jax.random.split(rng)
    create = jax.jit(
        lambda variables, key: create_state(variables, networks.optimizer, key),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like),
        donate_argnums=0,
    )
    return create(placed, run_key)


def described(module: nn.Module) -> dict[str, Any]:
    """Kind and hyper-parameters of a module."""
    kind, hyper = registry.describe(module)
    return {"kind": kind, **hyper}


def make_cadence(section: ConfigDict) -> loop.Cadence:
    """How long, and how often what."""
    return loop.Cadence(**{name: section[name] for name in ("steps", "log_every", "save_every", "sample_every")})


def check_config(config: ConfigDict) -> None:
    """Raise ValueError where a config lacks a field that training reads, or has one that it does not know."""
    for section, fields in common.base().items():
        if section not in config:
            raise ValueError(f"the config has no section {section}")
        found, expected = set(config[section]), set(fields)
        if section in ("model", "autoencoder"):  # what these hold is their builders' to say
            continue
        if found != expected:
            lacks, surplus = (", ".join(sorted(names)) or "nothing" for names in (expected - found, found - expected))
            raise ValueError(f"config section {section} lacks {lacks} and has {surplus} that is not known")
    if config.train.export_dtype not in ("float32", "float16"):
        raise ValueError(f"export_dtype {config.train.export_dtype!r} is unknown: float32 and float16 are accepted")


def build_networks(config: ConfigDict) -> Networks:
    """Modules and optimizer of a config; raises ValueError where they do not fit each other or the clips."""
    model = build_model(config.model)
    codec, codec_variables = build_codec(config.autoencoder, model.dtype)
    multiple = codec.downscale * 2 ** (len(model.block_out_channels) - 1)
    for bucket in config.data.buckets:
        if any(side % multiple for side in bucket):
            raise ValueError(f"bucket {tuple(bucket)}: both sides must be multiples of {multiple} pixels")
    if config.data.global_size % codec.downscale:
        raise ValueError(f"global_size is {config.data.global_size}: a multiple of {codec.downscale} is accepted")
    if model.latent_channels != codec.latent_channels:
        raise ValueError(f"the model has {model.latent_channels} latent channels, the codec {codec.latent_channels}")
    optimizer = make_optimizer(
        config.train.learning_rate,
        warmup_steps=config.train.warmup_steps,
        weight_decay=config.train.weight_decay,
        clip_norm=config.train.clip_norm,
    )
    return Networks(model, optimizer, codec, codec_variables, codec_identity(codec, codec_variables))


def build_model(section: ConfigDict) -> nn.Module:
    """The network that is trained."""
    hyper = section.to_dict()
    try:
        hyper["dtype"] = jnp.dtype(hyper["dtype"])
    except TypeError:
        raise ValueError(f"dtype {hyper['dtype']!r} is unknown: float32 and bfloat16 are accepted") from None
    return registry.build(**hyper)


def build_codec(section: ConfigDict, dtype: jnp.dtype) -> tuple[nn.Module, Variables]:
    """The frozen autoencoder: one without weights by its kind, or the model folder of a trained one, which computes in
    `dtype`."""
    if "folder" not in section:
        return registry.build(**section.to_dict()), {}
    codec, variables = load_model(section.folder)
    return codec.clone(dtype=dtype) if hasattr(codec, "dtype") else codec, variables


def list_sources(config: ConfigDict) -> list[tuple[str, str, float]]:
    """(kind, path, weight) of each source of clips."""
    return [(source["kind"], source["path"], source["weight"]) for source in config.data.to_dict()["sources"]]


def latent_facts(config: ConfigDict, networks: Networks) -> dict[str, Any]:
    """What latents depend on besides chance and the videos, as plain values."""
    data = config.data.to_dict()
    facts = {name: value for name, value in data.items() if name not in ("sources", "num_threads")}
    facts |= {"autoencoder": networks.codec_identity, "unknown": config.diffusion.unknown}
    return json.loads(json.dumps(facts))


def check_latents(config: ConfigDict, networks: Networks) -> None:
    """Raise ValueError where folders of latents were not made as the config says, or by another autoencoder."""
    here = latent_facts(config, networks)
    for path, _ in latent_folders(list_sources(config)):
        there = LatentFolder(path).facts
        there = {name: there[name] for name in here if name in there}
        check_fit(f"folder of latents {path}", flatten_dict(there, sep="."), flatten_dict(here, sep="."))


def make_dataset(config: ConfigDict, seed: int) -> grain.IterDataset:
    """This process's part of every batch: of latents, or of pixels."""
    data, sources = config.data.to_dict(), list_sources(config)
    part = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    part |= {"batch_size": config.train.batch_size, "seed": seed}
    if folders := latent_folders(sources):
        return make_latent_batches(folders, buckets=data["buckets"], num_threads=data["num_threads"], **part)
    settings = {name: value for name, value in data.items() if name not in ("sources", "masks")}
    return make_batches(sources, masks=MaskSampler(**data["masks"]), **settings, **part)


def build_schedule(section: ConfigDict) -> Schedule:
    """The noise schedule."""
    return make_schedule(section.schedule, zero_terminal_snr=section.zero_terminal_snr, shift=section.shift)


def make_step(config: ConfigDict, networks: Networks) -> Callable:
    """The pure train step that a config describes."""
    return make_diffusion_step(
        networks.model,
        networks.codec,
        build_schedule(config.diffusion),
        networks.optimizer,
        prediction=config.diffusion.prediction,
        min_snr_gamma=config.diffusion.min_snr_gamma or None,
        known_weight=config.diffusion.known_weight,
        unknown=config.diffusion.unknown,
        drop_local=config.train.drop_local,
        drop_global=config.train.drop_global,
        accumulate=config.train.accumulate,
        ema_decay=config.train.ema_decay,
    )


def fixed_values(config: ConfigDict, networks: Networks) -> dict[str, Any]:
    """What a run may not change between its checkpoints: the networks and the task."""
    named = {"model": described(networks.model), "autoencoder": networks.codec_identity}
    diffusion = {
        name: config.diffusion[name] for name in ("schedule", "zero_terminal_snr", "shift", "prediction", "unknown")
    }
    return named | {"diffusion": diffusion}


def steps_drawn(examples_seen: int, batch_size: int) -> int:
    """Batches that a data position is; raises ValueError where a changed batch size does not divide it."""
    if examples_seen % batch_size:
        raise ValueError(f"the checkpoint has seen {examples_seen} clips: batches of {batch_size} do not divide them")
    return examples_seen // batch_size


def make_preview(config: ConfigDict, model: nn.Module, codec: nn.Module) -> Callable:
    """The pure function (state, batch, codec variables) -> uint8 [B, T, H, 3 W, 3]: for each clip what is known of it,
    what the averaged weights make of that, and the truth, side by side."""
    schedule, settings = build_schedule(config.diffusion), config.sample
    guidance = Guidance(settings.guidance_local, settings.guidance_global, tuple(settings.guidance_interval))
    solver = make_solver(settings.solver, schedule, settings.steps)
    sample = make_sampler(
        model, schedule, solver, prediction=config.diffusion.prediction, guidance=guidance, clip=settings.clip
    )

    def preview(state: TrainState, batch: VideoBatch | LatentBatch, codec_variables: Variables) -> jax.Array:
        def to_pixels(latents: Latents) -> jax.Array:
            frames = decode_latents(codec, codec_variables, latents)
            return jnp.clip((frames + 1) * 127.5, 0, 255).astype(jnp.uint8)

        variables = {"params": state.ema_params, "batch_stats": state.batch_stats}
        encoded = encode_batch(codec, codec_variables, batch, config.diffusion.unknown)
        seen = make_conditions(encoded)
        encode_context = functools.partial(model.apply, variables, method="encode_context")
        conditions = Conditions(
            mask=seen.mask,
            masked_latents=seen.masked_latents,
            guides=jnp.max(seen.mask, axis=(2, 3, 4)) == 0,
            fps=seen.fps,
            context=encode_context(seen.global_latents),
            null_context=encode_context(jnp.zeros_like(seen.global_latents[:1])),
            black=encoded["black_mean"][0, 0],
        )
        noise = jax.random.normal(jax.random.key(0), seen.latents.shape)
        latents = sample(variables, jnp.zeros_like(noise), noise, conditions)
        made = to_pixels(latents)
        if "video" in batch:
            video, unknown = batch["video"], batch["mask"] > 0
        else:
            cell = {"p": codec.downscale, "q": codec.downscale}
            video, unknown = to_pixels(seen.latents), repeat(seen.mask > 0, "b t h w c -> b t (h p) (w q) c", **cell)
        return jnp.concatenate([jnp.where(unknown, 0, video), jnp.where(unknown, made, video), video], axis=3)

    return preview


def make_sample_hook(
    config: ConfigDict, networks: Networks, put: Callable, folder: pathlib.Path, log: loop.MetricsLog
) -> Callable[[TrainState, int], None]:
    """The loop's hook that writes a preview of clips drawn anew to FOLDER/STEP.gif and to TensorBoard."""
    jitted = jax.jit(make_preview(config, networks.model, networks.codec))
    batch = put(next(iter(make_dataset(config, config.train.seed + 1))))

    def sample(state: TrainState, step: int) -> None:
        shown = multihost_utils.process_allgather(jitted(state, batch, networks.codec_variables), tiled=True)
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            path = folder / f"{step:06d}.gif"
            frames = rearrange(shown[:_PREVIEWED], "b t h w c -> t (b h) w c")
            with FrameSink(path, _PREVIEW_FPS, *frames.shape[1:3]) as sink:
                sink.write(frames)
            log.add_gif("samples", path.read_bytes(), *frames.shape[1:3], step)

    return sample


def export(folder: pathlib.Path, config: ConfigDict, networks: Networks, state: TrainState) -> None:
    """Write the averaged weights as a model folder that outpaints as the config's sample section says."""
    variables = {"params": state.ema_params, "batch_stats": state.batch_stats}
    variables = multihost_utils.process_allgather(variables, tiled=True)
    variables["params"] = jax.tree.map(lambda leaf: leaf.astype(config.train.export_dtype), variables["params"])
    if jax.process_index() == 0:
        settings = {"diffusion": config.diffusion.to_dict(), "sample": config.sample.to_dict()}
        autoencoder = (networks.codec, networks.codec_variables)
        save_model(folder, networks.model, variables, settings=settings, autoencoder=autoencoder)


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "What to train: a file of configs/; any field can be overridden.")
    flags.DEFINE_string("workdir", None, "Folder of the run; a run that is found there goes on.")
    flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    train(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    _define_flags()
    command.run("train", main)
