"""Encode training clips once: python -m m3ddm_jax.precompute --config=configs/m3ddm.py --examples=N --out=DIR.

The config's clips, with their masks, intervals and global frames, go through its frozen networks, and what those make
of them goes to DIR. A run whose only source is {"kind": "latents", "path": DIR, "weight": 1.0} trains on it. The
same command goes on where it was stopped; a shard that was begun is begun anew.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from data import latents
from data.pipeline import StepDataset, make_batches
from data.splits import TRAIN
from m3ddm_jax import cli
from m3ddm_jax.files.places import check_apart
from m3ddm_jax.parallel.mesh import batch_shards, make_mesh, put_batch, replicated
from m3ddm_jax.recipes.base import clip_settings, list_sources
from m3ddm_jax.recipes.diffusion import DiffusionRecipe, with_added
from m3ddm_jax.training.checkpoint import check_fit
from m3ddm_jax.training.encoding import encode_batch
from m3ddm_jax.training.loop import StopRequest

Arrays = dict[str, np.ndarray]

# Of a LatentBatch; whatever is not named here are latents and patch tokens, in half precision.
_STORED_AS = {
    "mask": jnp.uint8,
    "fps": jnp.float32,
    "coordinates": jnp.float32,
    "observed": jnp.bool,
    "times": jnp.float32,
}


class Stopped(Exception):
    """It was asked to stop in the middle of a shard."""


def precompute(
    config: ConfigDict,
    out: str,
    examples: int,
    *,
    batch_size: int | None = None,
    examples_per_shard: int = latents.EXAMPLES_PER_SHARD,
    devices: Sequence[jax.Device] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[latents.Shard]:
    """Write the shards of `examples` encoded clips that the folder `out` lacks, of which each process takes its part;
    returns those of this process that are lacking still.

    batch_size: clips encoded at a time, by default one a device. devices: of this process, by default all of them.
    stop: whether to end, asked before each batch. None of these changes what a shard holds.
    Raises ValueError where the config does not fit itself or what was begun in the folder, OSError where nothing can be
    written.
    """
    check_apart([("output", out)], [("source", source.path) for source in list_sources(config) if source.path])
    recipe = DiffusionRecipe(config)
    if latents.latent_folders(list_sources(config)):
        raise ValueError("the config's clips are latents already: sources of video are accepted")
    mesh = make_mesh(devices=jax.local_devices() if devices is None else devices)
    batch_size = batch_size or batch_shards(mesh)
    if batch_size % batch_shards(mesh) or examples_per_shard % batch_size:
        accepted = f"a multiple of {batch_shards(mesh)} (devices) that divides {examples_per_shard} (clips of a shard)"
        raise ValueError(f"batch of {batch_size} clips: {accepted} is accepted")
    shards = latents.plan_shards(config.data.buckets, examples, examples_per_shard)
    clips = {bucket: make_clips(config, bucket, batch_size) for bucket in config.data.buckets}
    if jax.process_index() == 0:
        begin_folder(out, config, recipe, examples, examples_per_shard)
    multihost_utils.sync_global_devices("the folder was begun")

    encode = make_encoder(config, recipe, mesh)
    own = latents.missing_shards(out, shards[jax.process_index() :: jax.process_count()])
    with jax.set_mesh(mesh), tqdm(total=sum(shard.count for shard in own), unit="clip", disable=None) as bar:
        try:
            for bucket, group in itertools.groupby(own, key=lambda shard: shard.bucket):
                batches = iter(clips[bucket])
                for shard in group:
                    position = {"next_index": shard.first // batch_size}
                    if batches.get_state() != position:  # else what is decoded ahead stays of use
                        batches.set_state(position)
                    latents.write_shard(out, shard, encoded_clips(batches, encode, shard.count, stop))
                    bar.update(shard.count)
        except Stopped:
            pass
    return latents.missing_shards(out, own)


def begin_folder(out: str, config: ConfigDict, recipe: DiffusionRecipe, examples: int, examples_per_shard: int) -> None:
    """Note what the folder is to hold; raises ValueError where it was begun for something else."""
    facts = recipe.latent_facts() | {
        "seed": config.train.seed,
        # Without the usual split, as earlier versions noted sources.
        "sources": [list(source[:3] if source.split == TRAIN else source) for source in list_sources(config)],
        "examples": examples,
        "examples_per_shard": examples_per_shard,
    }
    begun = latents.read_facts(out)
    if begun is None:
        latents.write_facts(out, facts)
    else:
        check_fit(f"folder {out}", flatten_dict(with_added(begun, facts, out), sep="."), flatten_dict(facts, sep="."))


def make_clips(config: ConfigDict, bucket: tuple[int, int], batch_size: int) -> StepDataset:
    """Batches of the config's clips, all of one size; the clip at place i of step k is number k * batch_size + i."""
    settings = clip_settings(config) | {"buckets": (bucket,)}
    return make_batches(batch_size=batch_size, seed=config.train.seed, **settings)


def make_encoder(config: ConfigDict, recipe: DiffusionRecipe, mesh: Mesh) -> Callable[[Arrays], Arrays]:
    """The function that makes of a host batch of clips (VideoBatch) what is stored of it (LatentBatch)."""
    frozen = jax.device_put(recipe.frozen, replicated(mesh))

    @jax.jit
    def encode(frozen, batch):
        encoded = encode_batch(recipe.encoders, frozen, batch, config.diffusion.unknown)
        return {name: value.astype(_STORED_AS.get(name, jnp.float16)) for name, value in encoded.items()}

    def run(batch: Arrays) -> Arrays:
        return jax.device_get(encode(frozen, put_batch(mesh, batch))) | {"clip_id": batch["clip_id"]}

    return run


def encoded_clips(
    batches: Iterator[Arrays], encode: Callable[[Arrays], Arrays], count: int, stop: Callable[[], bool]
) -> Iterator[Arrays]:
    """The next `count` clips, encoded, one by one. Raises Stopped where `stop()` says so before a batch."""
    while count > 0:
        if stop():
            raise Stopped
        encoded = encode(next(batches))
        size = len(encoded["clip_id"])
        for place in range(min(size, count)):
            yield {name: value[place] for name, value in encoded.items()}
        count -= size


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Whose clips and autoencoder; any field can be overridden.")
    flags.DEFINE_integer("examples", None, "Clips to encode.", lower_bound=1)
    flags.DEFINE_string("out", None, "Folder of the shards; what is found there is completed.")
    flags.DEFINE_integer("batch", None, "Clips encoded at a time, over all devices; one a device by default.", 1)
    flags.mark_flags_as_required(["config", "examples", "out"])


def main() -> None:
    options = flags.FLAGS
    with StopRequest() as stop:
        missing = precompute(options.config, options.out, options.examples, batch_size=options.batch, stop=stop)
    if missing:
        print(f"{len(missing)} shards are missing in {options.out}: the same command goes on")
    else:
        print(f"{options.examples} examples are in {options.out}")


if __name__ == "__main__":
    _define_flags()
    cli.run("precompute", main)
