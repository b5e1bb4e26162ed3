"""Train a model: python -m m3ddm_jax.train --config=configs/tiny.py --workdir=DIR [--config.any.field=value].

The config's `recipe` says what is trained, on what, and how it is shown and exported (m3ddm_jax.recipes). A run goes on
from the newest checkpoint in its workdir, on whatever mesh the config names by then. The workdir gets checkpoints/,
metrics.jsonl, tensorboard/, samples/ and, at the end or at SIGTERM, model/: the averaged weights for outpainting.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence

import jax
from absl import flags
from einops import rearrange
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags

from m3ddm_jax import command
from m3ddm_jax.parallel.mesh import check_batch_size, make_mesh, put_batch, replicated
from m3ddm_jax.recipes import Recipe, make_recipe
from m3ddm_jax.recipes.base import jit_step
from m3ddm_jax.training import loop
from m3ddm_jax.training.checkpoint import Checkpoints
from m3ddm_jax.training.state import State
from m3ddm_jax.training.validation import completion_metrics, completion_sums, side_by_side
from m3ddm_jax.types import Variables, VideoBatch
from m3ddm_jax.video import FrameSink

# Of the sample videos: clips below one another, and frames per second.
_PREVIEWED, _PREVIEW_FPS = 4, 8.0


def train(config: ConfigDict, workdir: str, devices: Sequence[jax.Device] | None = None) -> State:
    """Train as a config of configs/ says, on all devices or those given; returns the last state.

    Raises ValueError where config, data or checkpoint do not fit, FloatingPointError where training diverges.
    """
    # What is trained, on what, where.
    recipe = make_recipe(config)
    folder = pathlib.Path(workdir)
    mesh = make_mesh(**config.mesh, devices=devices)
    check_batch_size(mesh, config.train.batch_size, config.train.accumulate)
    cadence = make_cadence(config.train)
    put = functools.partial(put_batch, mesh)

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(loop.StopRequest())
        stack.enter_context(jax.set_mesh(mesh))
        dataset = recipe.dataset(config.train.seed)
        batches = iter(dataset)
        frozen = jax.device_put(recipe.frozen, replicated(mesh))

        # The state and its place in the data: those of the newest checkpoint, else the beginning.
        rng = jax.random.key(config.train.seed)
        like = recipe.abstract_state(rng, mesh)
        checkpoints = Checkpoints(
            folder / "checkpoints", keep=config.train.keep, fixed=recipe.fixed, config=config.to_dict(), mesh=mesh
        )
        stack.callback(checkpoints.close)
        if checkpoints.latest_step() is None:
            state = recipe.begin(rng, like, put(next(iter(dataset))), frozen)
        else:
            state, examples_seen = checkpoints.restore(like)
            batches.set_state({"next_index": steps_drawn(examples_seen, config.train.batch_size)})

        if jax.process_index() == 0:
            size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            print(f"{size:,} parameters on {mesh.size} device(s), from step {int(state.step)}", flush=True)

        # The updates.
        step = jit_step(recipe, like, mesh)
        frames_per_step = config.train.batch_size * config.data.num_frames
        log = loop.MetricsLog(folder, start_step=int(state.step), cadence=cadence, frames_per_step=frames_per_step)
        stack.callback(log.close)
        sample = None
        if cadence.sample_every:
            held_out = iter(recipe.dataset(config.train.seed + 1))  # clips drawn anew
            held_out = [put(next(held_out)) for _ in range(config.train.sample_batches)]
            show = jax.jit(functools.partial(shown_and_summed, recipe), out_shardings=(None, replicated(mesh)))
            sample = make_sample_hook(
                lambda state: (show(state, batch, frozen) for batch in held_out), folder / "samples", log
            )
        state = loop.run(
            state,
            lambda state, batch: step(state, batch, frozen),
            batches,
            put,
            cadence=cadence,
            checkpoints=checkpoints,
            examples_seen=lambda: batches.get_state()["next_index"] * config.train.batch_size,
            log=log,
            sample=sample,
            stop=stop,
        )
        checkpoints.wait()
        recipe.export(folder / "model", state)
    return state


def make_cadence(section: ConfigDict) -> loop.Cadence:
    """How long, and how often what."""
    return loop.Cadence(**{name: section[name] for name in ("steps", "log_every", "save_every", "sample_every")})


def steps_drawn(examples_seen: int, batch_size: int) -> int:
    """Batches that a data position is; raises ValueError where a changed batch size does not divide it."""
    if examples_seen % batch_size:
        raise ValueError(f"the checkpoint has seen {examples_seen} clips: batches of {batch_size} do not divide them")
    return examples_seen // batch_size


def shown_and_summed(
    recipe: Recipe, state: State, batch: VideoBatch, frozen: Variables
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Pictures of a completed batch, uint8 [B, T, H, W', 3], and the sums that its metrics are made of."""
    completion = recipe.complete(state, batch, frozen)
    return side_by_side(completion), completion_sums(completion)


def make_sample_hook(
    show: Callable[[State], Iterable[tuple[jax.Array, dict[str, jax.Array]]]],
    folder: pathlib.Path,
    log: loop.MetricsLog,
) -> Callable[[State, int], None]:
    """The loop's hook that logs the metrics of all batches that are shown (`shown_and_summed`), and writes pictures of
    the first one to FOLDER/STEP.gif and to TensorBoard."""

    def sample(state: State, step: int) -> None:
        pictures, sums = zip(*show(state), strict=True)
        log.note(step, completion_metrics(sums))
        shown = multihost_utils.process_allgather(pictures[0], tiled=True)
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            path = folder / f"{step:06d}.gif"
            frames = rearrange(shown[:_PREVIEWED], "b t h w c -> t (b h) w c")
            with FrameSink(path, _PREVIEW_FPS, *frames.shape[1:3]) as sink:
                sink.write(frames)
            log.add_gif("samples", path.read_bytes(), *frames.shape[1:3], step)

    return sample


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "What to train: a file of configs/; any field can be overridden.")
    flags.DEFINE_string("workdir", None, "Folder of the run; a run that is found there goes on.")
    flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    train(flags.FLAGS.config, flags.FLAGS.workdir)


if __name__ == "__main__":
    _define_flags()
    command.run("train", main)
