"""What a recipe is, and what recipes share: checking a config, its clips, its networks, model folders."""

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data.masks import MaskSampler
from data.pipeline import make_batches
from m3ddm_jax.models import registry
from m3ddm_jax.models.attention import check_attention
from m3ddm_jax.models.remat import check_remat
from m3ddm_jax.parallel.mesh import process_part, replicated
from m3ddm_jax.training.checkpoint import check_fit
from m3ddm_jax.training.state import State, shardings_of
from m3ddm_jax.training.validation import Completion
from m3ddm_jax.types import Array, Variables, VideoBatch
from m3ddm_jax.weights import load_model, save_model

EXPORT_DTYPES = ("float32", "float16")


class Recipe(Protocol):
    """A family of training: what is trained, on what, how it is shown and exported. `m3ddm_jax.train` does the rest.

    It is made from a config, and then raises ValueError for whatever in there does not fit; nothing is on a device or
    on disk before. All methods are called under the mesh (`jax.set_mesh`), `begin` and `export` by every process.

    frozen: networks that are not trained, on the host. What the methods below are given as `frozen` are the same,
        replicated on the mesh: they enter compiled functions as an argument, and no checkpoint.
    fixed: nested plain values that a run may not change between its checkpoints.
    """

    frozen: Variables
    fixed: dict[str, Any]

    def dataset(self, seed: int) -> grain.IterDataset:
        """This process's part of every batch, without end, each with a `clip_id`; iterators count steps as those of
        `data.pipeline.make_batches`. Raises ValueError where the config's sources do not fit."""

    def abstract_state(self, rng: jax.Array, mesh: Mesh) -> State:
        """Shape, dtype and sharding of every array of the state."""

    def begin(self, rng: jax.Array, abstract_state: State, batch: VideoBatch, frozen: Variables) -> State:
        """The state before the first update, random or of `train.init_from`, laid out as `abstract_state`.

        batch: a batch on the mesh, for what must be calibrated. Raises ValueError where the model folder does not fit.
        """

    def step(self, state: State, batch: VideoBatch, frozen: Variables) -> tuple[State, dict[str, jax.Array]]:
        """One update: a pure function for `jax.jit`, which may take the memory of the state.

        batch: without clip_id. Chance follows from the state's rng and step alone. Metrics: float32 scalars, one set of
        names in all steps; one that is not finite ends the run, unless `skipped` is 1: an update was not made then,
        the step counts on. `stuck` is 1 where too many in a row were skipped: the run goes back (training.loop.run).
        """

    def complete(self, state: State, batch: VideoBatch, frozen: Variables) -> Completion:
        """What the averaged weights make of the unknown part of a batch; a pure function."""

    def export(self, folder: str | os.PathLike, state: State) -> None:
        """Write what was learnt as a model folder."""


def jit_step(recipe: Recipe, abstract_state: State, mesh: Mesh) -> Callable:
    """A recipe's step as runs compile it: it takes the memory of a state, and leaves one laid out as
    `abstract_state`."""
    return jax.jit(recipe.step, donate_argnums=0, out_shardings=(shardings_of(abstract_state), replicated(mesh)))


def check_config(config: ConfigDict, expected: ConfigDict, built: Collection[str]) -> None:
    """Raise ValueError where a config lacks a section or field that a recipe reads, has a field that is not known, or
    in what all recipes have a value that is not accepted.

    expected: a config with all sections and fields. built: the sections that describe a network; what those hold is
    for the builders to say.
    """
    for section, fields in expected.items():
        if section not in config:
            raise ValueError(f"the config has no section {section}")
        if section in built or not isinstance(fields, ConfigDict):
            continue
        found, known = set(config[section]), set(fields)
        if found != known:
            lacks, surplus = (", ".join(sorted(names)) or "nothing" for names in (known - found, found - known))
            raise ValueError(f"config section {section} lacks {lacks} and has {surplus} that is not known")
    if config.train.export_dtype not in EXPORT_DTYPES:
        raise ValueError(
            f"export_dtype {config.train.export_dtype!r} is unknown: {' and '.join(EXPORT_DTYPES)} are accepted"
        )
    if config.train.spike_patience < 1:
        raise ValueError(f"spike_patience is {config.train.spike_patience}: 1 or more is accepted")


def check_clips(config: ConfigDict, multiple: int) -> None:
    """Raise ValueError for clips with references or sides that are no multiples, and for batches in parts: the losses
    are means over the masks of a whole one."""
    if config.data.references:
        raise ValueError(f"data.references is {config.data.references}: this recipe has none, 0 is accepted")
    if config.train.accumulate != 1:
        raise ValueError(f"accumulate is {config.train.accumulate}: this recipe has whole batches, 1 is accepted")
    for bucket in config.data.buckets:
        if any(side % multiple for side in bucket):
            raise ValueError(f"bucket {tuple(bucket)}: sides that are multiples of {multiple} are accepted")


def check_mesh(sizes: Mapping[str, int], limits: Mapping[str, int]) -> None:
    """Raise ValueError where a mesh splits a network into more equal parts than it has.

    sizes: devices an axis; one that is -1 yet, the rest of them, splits nothing. limits: of `Denoiser.mesh_limits`.
    """
    for axis, limit in limits.items():
        if sizes[axis] > 1 and limit % sizes[axis]:
            accepted = f"a divisor of {limit} is accepted" if limit > 1 else "1 is accepted, it splits nothing"
            raise ValueError(f"mesh.{axis} is {sizes[axis]}: for this model and its clips {accepted}")


def check_platform(config: ConfigDict, mesh: Mesh) -> None:
    """Raise ValueError where a mesh's devices do not have the form of attention that the config names."""
    check_attention(config.model.get("attention", "auto"), mesh.devices.flat[0].platform)


def check_kind(kind: str | None, accepted: Collection[str]) -> str:
    """The kind of a config's model; raises ValueError where the recipe does not train it."""
    if kind not in accepted:
        raise ValueError(f"model kind {kind!r} does not fit this recipe: {' or '.join(accepted)} is accepted")
    return kind


def build_model(section: ConfigDict, kind: str | None = None) -> nn.Module:
    """The network that a section describes by its kind and hyper-parameters.

    kind: the one that is accepted; None accepts all. Raises ValueError for another kind, and for what is unknown.
    """
    hyper = section.to_dict()
    if kind is not None:
        check_kind(hyper.get("kind"), [kind])
    check_remat(hyper.get("remat", "none"))
    check_attention(hyper.get("attention", "auto"))
    if "dtype" in hyper:
        try:
            hyper["dtype"] = jnp.dtype(hyper["dtype"])
        except TypeError:
            raise ValueError(f"dtype {hyper['dtype']!r} is unknown: float32 and bfloat16 are accepted") from None
    return registry.build(**hyper)


def init_for_relu(module: nn.Module, key: jax.Array) -> Variables:
    """Fresh variables whose kernels keep the size of signals through rectifiers (He et al., Delving deep into
    rectifiers, 2015), as those networks need it that have no norms."""
    variables = registry.init(module, key)
    wide = jax.tree.map(lambda leaf: 2**0.5 * leaf if leaf.ndim > 1 else leaf, variables["params"])
    return {**variables, "params": wide}


def described(module: nn.Module) -> dict[str, Any]:
    """Kind and hyper-parameters of a module."""
    kind, hyper = registry.describe(module)
    return {"kind": kind, **hyper}


def load_variables(folder: str, module: nn.Module) -> Variables:
    """What a model folder holds, on the host. Raises ValueError where that is not of such a module."""
    found, variables = load_model(folder)
    check_fit(f"model folder {folder}", described(found), described(module))
    return variables


def export_model(folder: str | os.PathLike, module: nn.Module, variables: Variables, *, dtype: str, **more) -> None:
    """Write a model folder from arrays on the mesh, its parameters as `dtype`; to be called by every process.

    more: what `weights.save_model` takes besides.
    """
    variables = multihost_utils.process_allgather(variables, tiled=True)
    variables["params"] = jax.tree.map(lambda leaf: leaf.astype(dtype), variables["params"])
    if jax.process_index() == 0:
        save_model(folder, module, variables, **more)


def list_sources(config: ConfigDict) -> list[tuple[str, str, float]]:
    """(kind, path, weight) of each source of clips."""
    return [(source["kind"], source["path"], source["weight"]) for source in config.data.to_dict()["sources"]]


def clip_settings(config: ConfigDict) -> dict[str, Any]:
    """The data section as `data.pipeline.make_batches` takes it."""
    data = config.data.to_dict()
    return data | {"sources": list_sources(config), "masks": MaskSampler(**data["masks"])}


def batch_part(config: ConfigDict, seed: int) -> dict[str, int]:
    """The size of a batch, the part of it that is this process's, and the seed, as data sets take them.

    The mesh in force says which part: processes that hold the same clips read them alike. Without one, each has one.
    """
    mesh, process = jax.sharding.get_mesh(), jax.process_index()
    index, count = (process, jax.process_count()) if mesh.empty else process_part(mesh, process)
    return {"process_index": index, "process_count": count, "batch_size": config.train.batch_size, "seed": seed}


def make_clips(config: ConfigDict, seed: int) -> grain.IterDataset:
    """This process's part of every batch of a config's clips."""
    return make_batches(**clip_settings(config), **batch_part(config, seed))


def to_uint8(frames: Array) -> jax.Array:
    """Frames in [-1, 1], clipped, -> uint8."""
    return jnp.clip((frames + 1) * 127.5, 0, 255).astype(jnp.uint8)
