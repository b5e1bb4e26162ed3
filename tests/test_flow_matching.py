"""Flow matching from the config to the outpainted video: M3DDM's U-Net with velocity on a rectified flow."""

import json

import jax
import numpy as np
import pytest

from configs import m3ddm_flow_tiny
from m3ddm_jax import train as trainer
from m3ddm_jax.video import FrameSink, FrameSource
from m3ddm_jax.weights import load_settings

pytestmark = pytest.mark.usefixtures("quick_init")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip"
    rng = np.random.default_rng(0)
    with FrameSink(path, 24, 64, 64) as sink:
        sink.write(rng.integers(0, 256, (2, 64, 64, 3), np.uint8))
    return path


def test_trains_and_outpaints(run_module, tmp_path, clip):
    config = m3ddm_flow_tiny.get_config()
    # One level, one device: little to compile.
    config.model.update(block_out_channels=(32,), attention_levels=(False,))
    config.mesh.data = 1
    config.data.update(num_frames=2, global_frames=1)
    config.train.update(steps=20, batch_size=4, warmup_steps=1, learning_rate=3e-3, log_every=1)
    trainer.train(config, tmp_path / "run", jax.devices()[:1])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    # The velocity of unit noise and clips has a power of about 2; some of it is soon predicted.
    assert np.mean(losses[-5:]) < 0.85 * losses[0]
    model = tmp_path / "run" / "model"
    assert load_settings(model)["diffusion"]["prediction"] == "velocity"
    options = ["--pad=32,0,32,0", f"--model={model}", "--set=lines=32", "--set=num_frames=2", "--steps=2"]
    made = {}
    for solver in ("euler", "ancestral"):
        for take in range(2):
            out = tmp_path / f"{solver}{take}"
            done = run_module("m3ddm_jax.outpaint", clip, out, *options, f"--set=solver={solver}")
            assert done.returncode == 0, done.stderr
            made[solver, take] = FrameSource(out)[0:2]
        # Stochastic steps follow from the seed, too.
        np.testing.assert_array_equal(made[solver, 0], made[solver, 1])
    assert made["euler", 0].shape == (2, 64, 128, 3) and (made["euler", 0] != made["ancestral", 0]).any()
    np.testing.assert_array_equal(made["euler", 0][:, :, 32:96], FrameSource(clip)[0:2])
    done = run_module("m3ddm_jax.outpaint", clip, tmp_path / "other", *options, "--set=solver=heun")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "solver 'heun' is unknown: one of ancestral, ddim, dpm++, euler, plms, unipc is accepted" in done.stderr


def test_what_does_not_fit_is_one_line(run_module, tmp_path):
    arguments = ["--config=configs/m3ddm_flow_tiny.py", f"--workdir={tmp_path / 'run'}"]
    for option, message in (
        ("--config.diffusion.prediction=epsilon", "prediction 'epsilon' does not fit a schedule whose last timestep"),
        ("--config.diffusion.schedule=linear", "schedule 'linear' is unknown: one of cosine, rectified_flow"),
    ):
        done = run_module("m3ddm_jax.train", *arguments, option)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
        assert not (tmp_path / "run").exists()
