"""A process that reads damaged files as the commands do; its parent, test_mutations.py, sends seeds and watches it.

It answers each line KIND SEED with a line of JSON: what was wrong (null where nothing was), and how large it is.
"""

import contextlib
import io
import json
import os
import pathlib
import random
import runpy
import shutil
import sys
import tempfile
from fractions import Fraction

import av
import jax
import numpy as np
import optax
from absl import flags

from data import latents
from data.builders.clips import Clips
from data.encode import EncodedClip, encode_video
from data.shards import ShardSource
from eval.features import Features
from eval.score_cache import ScoreCache
from eval.scores import ClipScores
from m3ddm_jax import cli, outpaint_flags
from m3ddm_jax.measure.memory import peak_rss
from m3ddm_jax.models import registry
from m3ddm_jax.parallel.mesh import make_mesh
from m3ddm_jax.pipelines.denoiser import load_pipeline
from m3ddm_jax.pipelines.m3ddm import DEFAULT_MODEL, PRESETS, M3ddmSettings
from m3ddm_jax.training.checkpoint import Checkpoints
from m3ddm_jax.training.loop import read_metrics
from m3ddm_jax.training.state import abstract_state, init_state
from m3ddm_jax.video import MaskSource
from m3ddm_jax.weights import load_model, save_model
from m3ddm_jax.weights.torchscript import read_torchscript
from tests.hostile.mutations import mutate_file

_EXPECTED = (ValueError, OSError, FloatingPointError)
_OUTPAINT = runpy.run_module("m3ddm_jax.outpaint")
_RNG = np.random.default_rng(0)
_FRAMES = (_RNG.integers(0, 64, (8, 32, 48, 3)) + np.arange(8)[:, None, None, None] * 20).astype(np.uint8)
_CODECS = {
    "mp4": ("libx264", "yuv420p"),
    "mov": ("mjpeg", "yuvj420p"),
    "mkv": ("libx264", "yuv420p"),
    "webm": ("libvpx-vp9", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "ts": ("libx264", "yuv420p"),
    "mpg": ("mpeg2video", "yuv420p"),
    "gif": ("gif", "rgb8"),
    "y4m": ("wrapped_avframe", "yuv420p"),
}
_IMAGES = {
    "png": ("png", "rgb24"),
    "jpg": ("mjpeg", "yuvj420p"),
    "webp": ("libwebp", "yuv420p"),
    "bmp": ("bmp", "bgr24"),
}


# What each kind is made of, once: a folder that is copied and damaged.


def make_video(folder, suffix):
    codec, pixels = _CODECS[suffix]
    with av.open(str(folder / f"in.{suffix}"), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, pixels
        for index, frame in enumerate(_FRAMES):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)
            picture.pts, picture.time_base = index, Fraction(1, 24)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def make_image(folder, suffix):
    codec, pixels = _IMAGES[suffix]
    encoder = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = 32, 48, pixels, Fraction(1, 24)
    picture = av.VideoFrame.from_ndarray(_FRAMES[0], format="rgb24").reformat(format=pixels)
    (folder / f"in.{suffix}").write_bytes(b"".join(map(bytes, [*encoder.encode(picture), *encoder.encode(None)])))


def make_model(folder):
    module = registry.build("autoencoder", block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)
    shapes = registry.abstract_variables(module)
    save_model(folder / "model", module, jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes))


def make_latents(folder):
    facts = {"buckets": [[16, 16]], "examples": 4, "examples_per_shard": 2}
    latents.write_facts(folder / "latents", facts)
    for shard in latents.plan_shards(((16, 16),), 4, 2):
        examples = [{"a": np.arange(9, dtype=np.float16), "id": np.array("x")} for _ in range(2)]
        latents.write_shard(folder / "latents", shard, examples)


def make_shards(folder):
    clip = EncodedClip(encode_video(_FRAMES, 24), "a/0", 8, 24.0, 32, 48, "a/0", 0, 1, 8)
    builder = Clips({"train": [clip, clip._replace(name="a/1", shot="a/1")]}, data_dir=folder / "made")
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    shutil.move(builder.data_dir, folder / "shards")
    shutil.rmtree(folder / "made")


def scores():
    per_frame = {"whole_mse": np.arange(4.0)}
    return ClipScores(per_frame, {"known_error": 3.0}, {"truth": np.ones(4, np.float32)}, (24, 32), _FRAMES[0])


def make_checkpoint(folder):
    checkpoints = opened(folder)
    for step in (1, 2):
        checkpoints.save(state(step), step, examples_seen=step)
    checkpoints.close()


def opened(folder):
    return Checkpoints(folder / "checkpoints", keep=2, fixed={"kind": "x"}, config={}, mesh=MESH)


MESH = make_mesh(devices=jax.devices()[:1])
OPTIMIZER = optax.sgd(0.1)


def init(key):
    return {"params": {"w": jax.random.normal(key, (32, 32))}}


def state(step):
    rng = jax.random.key(0)
    return init_state(init, OPTIMIZER, rng, abstract_state(init, OPTIMIZER, rng, MESH)).replace(step=np.int32(step))


def make_torchscript(folder):
    """As torch.jit.save writes it: a pickle of named tensors and their storages."""
    import torch

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x)

    torch.jit.script(Holder()).save(str(folder / "in.pt"))


def make_logs(folder):
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": 0.5}) + "\n" for i in range(9)))


# How each is read, as a command does it.


def run_outpaint(folder, source):
    """Exit code 0 and a whole output, or 2, one line and none."""
    target, errors = folder / "out", io.StringIO()
    flags.FLAGS(["outpaint", "--pad=4,0,4,0", "--method=edge"])
    code = 0
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.call("outpaint", _OUTPAINT["main"], ("IN", "OUT"), [str(source), str(target)])
        except SystemExit as end:
            code = end.code
    lines = errors.getvalue().splitlines()
    frames = [path for path in target.iterdir() if path.suffix == ".png"] if target.is_dir() else []
    if code == 0 and not frames:
        return "exit code 0 without an output"
    if code != 0 and (code != 2 or target.exists() or len(lines) != 1):
        return f"exit code {code}, {len(lines)} lines, output: {target.exists()}: {lines}"
    return None


def read_video(folder):
    return run_outpaint(folder, next(folder.glob("in.*")))


def read_mask(folder):
    MaskSource(next(folder.glob("in.*")), 6)[0:6]


def read_latents(folder):
    records = latents.LatentFolder(folder / "latents").bucket((16, 16))
    for index in range(len(records)):
        records[index]


def read_shards(folder):
    source = ShardSource(folder / "shards")
    for index in range(min(len(source), 4)):
        video = source.open(index)
        video.read([0], None)


def read_scores(folder):
    found = ScoreCache(folder / "scores").load("a", "key")
    if found is not None and not isinstance(found, ClipScores):
        return f"scores are {type(found)}"
    Features.load(folder / "features.npz")
    return None


def read_pipeline(folder):
    _, own = load_pipeline(folder / "model", "sample")
    M3ddmSettings.make({**own, **PRESETS.get("none", {})})


def read_checkpoint(folder):
    rng = jax.random.key(0)
    checkpoints = opened(folder)
    try:
        restored, seen = checkpoints.restore(abstract_state(init, OPTIMIZER, rng, MESH))
    finally:
        checkpoints.close()
    whole = state(int(restored.step))
    if seen != int(restored.step) or seen not in (1, 2):
        return f"step {int(restored.step)} with {seen} examples was restored"
    if not np.array_equal(restored.params["w"], whole.params["w"]):
        return f"step {seen} was restored with other weights"
    return None


def copy_default_model(folder):
    (folder / "model").mkdir()
    shutil.copy(DEFAULT_MODEL / "pipeline.json", folder / "model")


def make_scores(folder):
    ScoreCache(folder / "scores").save("a", "key", scores())
    Features(np.array(["a"]), np.ones((1, 4), np.float32)).save(folder / "features.npz")


KINDS = {
    **{name: (lambda folder, name=name: make_video(folder, name), read_video) for name in _CODECS},
    **{name: (lambda folder, name=name: make_image(folder, name), read_video) for name in _IMAGES},
    "mask": (lambda folder: make_image(folder, "png"), read_mask),
    "model": (make_model, lambda folder: load_model(folder / "model")),
    "pipeline": (copy_default_model, read_pipeline),
    "latents": (make_latents, read_latents),
    "shards": (make_shards, read_shards),
    "scores": (make_scores, read_scores),
    "checkpoint": (make_checkpoint, read_checkpoint),
    "metrics": (make_logs, lambda folder: read_metrics(folder / "metrics.jsonl")),
    "torchscript": (make_torchscript, lambda folder: read_torchscript(folder / "in.pt")),
}
"""kind -> (what makes a folder of it, what reads that)."""


def judge(kind, seed, whole, folder):
    """What is wrong with how a damaged folder is read, or None."""
    shutil.copytree(whole, folder)
    path = mutate_file(folder, random.Random(f"{kind} {seed}"))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            found = KINDS[kind][1](folder)
        found = found if isinstance(found, str) else None
    except _EXPECTED as error:
        found = None if str(error).strip() else f"{type(error).__name__} without a message"
    except BaseException as error:  # whatever it is, it is a finding
        found = f"{type(error).__name__}: {str(error)[:200]}"
    leftovers = [entry.name for entry in folder.rglob(".*") if entry.name.endswith((".part", ".old"))]
    if leftovers:
        found = f"{found or ''} leaves {leftovers}"
    return found and f"{path.relative_to(folder)}: {found}"


def main():
    outpaint_flags.define()
    flags.DEFINE_string("preview", None, "")
    answers, made = os.fdopen(os.dup(1), "w"), {}
    os.dup2(2, 1)  # whatever prints is no answer
    with tempfile.TemporaryDirectory() as root:
        for line in sys.stdin:
            kind, seed = line.split()
            if kind not in made:
                made[kind] = pathlib.Path(root, f"whole-{kind}")
                made[kind].mkdir()
                KINDS[kind][0](made[kind])
            folder = pathlib.Path(root, "damaged")
            found = judge(kind, seed, made[kind], folder)
            shutil.rmtree(folder)
            print(json.dumps({"found": found, "megabytes": peak_rss() >> 20}), file=answers, flush=True)


if __name__ == "__main__":
    main()
