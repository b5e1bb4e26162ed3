"""A process that writes over and over in children that are killed at random moments; test_kills.py runs it.

Arguments: what is written, a folder, how many kills, a seed. Prints a line of JSON: what was lost, a list.
"""

import contextlib
import io
import json
import os
import pathlib
import random
import signal
import sys
import time

import jax
import numpy as np

from data import latents
from data.encode import encode_video
from data.prepare import PrepareSettings, prepare
from data.shards import ShardSource
from m3ddm_jax.files.writing import recover
from m3ddm_jax.models import registry
from m3ddm_jax.models.residual_unet import ResidualUNet
from m3ddm_jax.weights import load_model, save_model

_MODULE = registry.build("residual_unet", widths=(8, 16))
_SHAPES = registry.abstract_variables(_MODULE)


def model(value):
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, np.float32), _SHAPES)


def write_model(folder, number):
    save_model(folder / "model", _MODULE, model(number), settings={"share": 0.1})


def check_model(folder):
    """The old model or the new one, as a whole."""
    _, variables = load_model(folder / "model")
    values = {float(leaf.flat[0]) for leaf in jax.tree.leaves(variables)}
    return [] if len(values) == 1 else [f"weights of {values} are mixed"]


def write_cache(folder, number):
    save_model(folder / f"entry{number % 3}", _MODULE, model(number), settings={"share": 0.1})


def check_cache(folder):
    for entry in folder.glob("entry*"):
        module, _ = load_model(entry)
        if type(module) is not ResidualUNet:
            return [f"{entry} is a {type(module)}"]
    return []


def write_latents(folder, number):
    out = folder / f"latents{number}"
    if latents.read_facts(out) is None:
        latents.write_facts(out, {"buckets": [[16, 16]], "examples": 40, "examples_per_shard": 4})
    shards = latents.plan_shards(((16, 16),), 40, 4)
    for shard in latents.missing_shards(out, shards):
        latents.write_shard(out, shard, ({"a": np.zeros((64, 64), np.float16)} for _ in range(4)))


def check_latents(folder):
    """What is there is whole, and the next run completes it."""
    with contextlib.suppress(StopIteration):
        out = next(iter(folder.glob("latents*")))
        write_latents(folder, out.name.removeprefix("latents"))
        records = latents.LatentFolder(out).bucket((16, 16))
        if sum(records[index]["a"].shape == (64, 64) for index in range(len(records))) != 40:
            return ["records are lost"]
        if strangers := [path.name for path in out.iterdir() if path.name.startswith(".")]:
            return [f"{strangers} stay"]
        for path in sorted(out.iterdir(), reverse=True):
            path.unlink()
        out.rmdir()
    return []


def make_clips(folder):
    (folder / "clips").mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (48, 64, 64, 3), np.uint8)
    (folder / "clips" / "a.mp4").write_bytes(encode_video(frames, 24))


def write_dataset(folder, number):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare(folder / "clips", folder / f"dataset{number}", PrepareSettings(64, 1.0, 2.0), 1)


def check_dataset(folder):
    for path in folder.glob("dataset*"):
        if not (path / "report.json").is_file() or not len(ShardSource(path)):
            return [f"{path} is not whole"]
    return []


WRITES = {
    "export": (write_model, check_model, lambda folder: write_model(folder, 0), 0.02),
    "adapt_cache": (write_cache, check_cache, lambda folder: None, 0.02),
    "precompute": (write_latents, check_latents, lambda folder: None, 0.04),
    "prepare": (write_dataset, check_dataset, make_clips, 1.0),
}
"""what -> (writes it, what is lost of it, what is there before, seconds that writing takes)."""


def killed_once(write, folder, number, seconds):
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            write(folder, number)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def main(what, folder, kills, seed):
    folder, rng = pathlib.Path(folder), random.Random(seed)
    write, check, prepare_folder, seconds = WRITES[what]
    prepare_folder(folder)
    lost = []
    for number in range(1, kills + 1):
        killed_once(write, folder, number, rng.uniform(0, 1.2 * seconds))
        try:
            lost += check(folder)
        except Exception as error:
            lost.append(f"kill {number}: {type(error).__name__}, {error}")
    write(folder, kills + 1)  # the next one that is not killed cleans up
    recover(folder / "none")
    lost += [f"{path.name} stays" for path in folder.iterdir() if path.name.endswith((".part", ".old"))]
    print(json.dumps(lost))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
