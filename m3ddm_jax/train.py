"""Train a model: python -m m3ddm_jax.train --config=configs/m3ddm_embedded.py --workdir=DIR [--config.any.field=value].

The config's `recipe` says what is trained, on what, and how it is shown and exported (m3ddm_jax.recipes). A run goes on
from the newest checkpoint in its workdir, on whatever mesh the config names by then. The workdir gets checkpoints/,
metrics.jsonl, tensorboard/, samples/ and, at the end or at SIGTERM, model/: the averaged weights for outpainting.

On several hosts the same command runs on each, with --distributed where the environment says who belongs to the run
(Cloud TPU, SLURM, Open MPI, Kubernetes), else with --coordinator=HOST:PORT --num_processes=N --process_id=I.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import jax
from absl import flags
from einops import rearrange
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from m3ddm_jax import cli
from m3ddm_jax.files.locking import Lock
from m3ddm_jax.files.places import check_apart
from m3ddm_jax.parallel import processes
from m3ddm_jax.parallel.mesh import check_batch_size, make_mesh, put_batch, replicated
from m3ddm_jax.recipes import Recipe, make_recipe
from m3ddm_jax.recipes.base import check_platform, jit_step, list_sources
from m3ddm_jax.training import loop
from m3ddm_jax.training.checkpoint import Checkpoints, versions
from m3ddm_jax.training.mirror import Mirror, is_remote
from m3ddm_jax.training.state import State
from m3ddm_jax.training.validation import completion_metrics, completion_sums, side_by_side
from m3ddm_jax.types import Variables, VideoBatch
from m3ddm_jax.video import FrameSink

# Of the sample videos: clips below one another, and frames per second.
_PREVIEWED, _PREVIEW_FPS = 4, 8.0
# The code that a run consists of.
_ROOT, _CODE = pathlib.Path(__file__).resolve().parents[1], ("m3ddm_jax", "data", "configs")


def train(
    config: ConfigDict,
    workdir: str,
    devices: Sequence[jax.Device] | None = None,
    stall_seconds: float = processes.STALL_SECONDS,
) -> State:
    """Train as a config of configs/ says, on all devices or those given; returns the last state.

    stall_seconds: where processes train together, one that makes no update for so long ends with a line.
    Raises ValueError where config, data or checkpoint do not fit, or processes do not have the same, FloatingPointError
    where training diverges.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stopping(stall_seconds))
        recipe, mesh, cadence, dataset = prepare(config, workdir, devices)
        folder, publish = stack.enter_context(local_folder(workdir))
        with processes.agreement():
            stack.enter_context(locked(workdir))
        put = functools.partial(put_batch, mesh)
        stack.enter_context(jax.set_mesh(mesh))
        batches = iter(dataset)
        frozen = jax.device_put(recipe.frozen, replicated(mesh))

        # The state and its place in the data: those of the newest checkpoint, else the beginning.
        rng = jax.random.key(config.train.seed)
        abstract_state = recipe.abstract_state(rng, mesh)
        checkpoints = Checkpoints(
            epath.Path(workdir) / "checkpoints",
            keep=config.train.keep,
            fixed=recipe.fixed,
            config=config.to_dict(),
            mesh=mesh,
            on_save=publish,
        )
        stack.callback(checkpoints.close)
        with processes.agreement():
            if checkpoints.latest_step() is None:
                state = recipe.begin(rng, abstract_state, put(next(iter(dataset))), frozen)
            else:
                state, examples_seen = checkpoints.restore(abstract_state)
                batches.set_state({"next_index": steps_drawn(examples_seen, config.train.batch_size)})

        if jax.process_index() == 0:
            size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            print(f"{size:,} parameters on {mesh.size} device(s), from step {int(state.step)}", flush=True)

        # The updates.
        step = jit_step(recipe, abstract_state, mesh)
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
        publish()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("the model is written")
    return state


def prepare(
    config: ConfigDict, workdir: str, devices: Sequence[jax.Device] | None
) -> tuple[Recipe, Mesh, loop.Cadence, grain.IterDataset]:
    """What is trained, where, how long and on what, alike in all processes; what fails in one fails in all."""
    with processes.agreement() as same:
        check_apart([("workdir", workdir)], [("source", path) for _, path, _ in list_sources(config) if path])
        recipe = make_recipe(config)
        mesh = make_mesh(**config.mesh, devices=devices)
        check_batch_size(mesh, config.train.batch_size, config.train.accumulate)
        check_platform(config, mesh)
        cadence = make_cadence(config.train)
        with jax.set_mesh(mesh):
            dataset = recipe.dataset(config.train.seed)
        if jax.process_count() > 1:
            same |= fingerprints(config, recipe.fixed)
    return recipe, mesh, cadence, dataset


@contextlib.contextmanager
def stopping(stall_seconds: float) -> Iterator[Callable[[int], bool]]:
    """What the loop asks before each update: whether SIGTERM has come, to this process or to any that trains with it.
    Of those, one that asks nothing for so long ends."""
    if jax.process_count() == 1:
        with loop.StopRequest() as stop:
            yield stop
        return
    line = f"train: process {jax.process_index()} has made no update for {stall_seconds} s; where it stands:"
    with processes.Deadline(stall_seconds, line, traces=True) as stall:
        yield processes.AgreedStop(stall.extend)


@contextlib.contextmanager
def local_folder(workdir: str) -> Iterator[tuple[pathlib.Path, Callable[[], None]]]:
    """A run's folder on this machine, and what is to be called when it has changed: for a workdir in a bucket it
    is a temporary one, which the first process copies there."""
    if not is_remote(workdir):
        yield pathlib.Path(workdir), lambda: None
        return
    with tempfile.TemporaryDirectory() as folder:
        mirror = Mirror(workdir, folder, names=("metrics.jsonl",))
        yield pathlib.Path(folder), mirror.publish if jax.process_index() == 0 else lambda: None


def locked(workdir: str) -> contextlib.AbstractContextManager:
    """Keeps other runs out of a run's folder, in the first process; a bucket has no locks."""
    if is_remote(workdir) or jax.process_index() != 0:
        return contextlib.nullcontext()
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    return Lock(pathlib.Path(workdir, ".lock"), f"the workdir {workdir}")


def fingerprints(config: ConfigDict, fixed: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of what processes that train together must have alike.

    config: all fields, and what the recipe made of them and of weights (`Recipe.fixed`). code: this project's sources,
    and versions of packages. data: the files of sources, and of the model that is started from, by name and size.
    """
    facts = json.dumps([config.to_dict(), fixed], sort_keys=True)
    sources = (path for top in _CODE for path in sorted((_ROOT / top).rglob("*.py")))
    paths = [path for _, path, _ in list_sources(config)] + [config.train.init_from]
    return {
        "config": _hash([facts.encode()]),
        "code": _hash([json.dumps(versions()).encode(), *(path.read_bytes() for path in sources)]),
        "data": _hash(line.encode() for path in paths if path for line in _files(pathlib.Path(path))),
    }


def _files(folder: pathlib.Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n"


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


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
    flags.DEFINE_bool("distributed", False, "Train with the other processes that the environment tells of.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where the environment does not tell.")
    flags.DEFINE_integer("num_processes", None, "With --coordinator: how many train together.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "With --coordinator: which of them this is, from 0.", lower_bound=0)
    flags.DEFINE_integer("start_seconds", processes.START_SECONDS, "For all processes to come.", lower_bound=1)
    flags.DEFINE_integer(
        "stall_seconds", processes.STALL_SECONDS, "After so long without an update processes end.", lower_bound=1
    )
    flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    options = flags.FLAGS
    explicit = (options.coordinator, options.num_processes, options.process_id)
    if options.distributed or any(value is not None for value in explicit):
        processes.start(*explicit, seconds=options.start_seconds)
    with processes.failing_at_once():
        train(options.config, options.workdir, stall_seconds=options.stall_seconds)


if __name__ == "__main__":
    _define_flags()
    cli.run("train", main)
