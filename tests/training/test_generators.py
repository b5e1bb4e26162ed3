import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.diffusion.schedule import cosine, variance_preserving
from m3ddm_jax.diffusion.targets import PREDICTIONS, make_target
from m3ddm_jax.models.autoencoder import PatchCodec, reduce_mask
from m3ddm_jax.training.diffusion_step import make_diffusion_loss
from m3ddm_jax.training.encoding import encode_frames, to_unit_range
from m3ddm_jax.training.generators import diffusion_generator, e2fgvi_generator

CODEC = PatchCodec(4)
FROZEN = {"autoencoder": {}}
# Some noise even at the first timestep, so that what it is can be told.
SCHEDULE = variance_preserving(cosine(100)[5:95])


def make_batch(clips=3):
    rng = np.random.default_rng(0)
    return {
        "video": rng.integers(0, 256, (clips, 2, 8, 12, 3), np.uint8),
        "mask": np.broadcast_to((np.arange(12) < 5).astype(np.uint8)[:, None], (clips, 2, 8, 12, 1)),
        "global_frames": rng.integers(0, 256, (clips, 1, 8, 8, 3), np.uint8),
        "fps": np.full(clips, 12.0, np.float32),
    }


BATCH = make_batch()
TRUTH, MASK = to_unit_range(BATCH["video"]), BATCH["mask"].astype(np.float32)


class Copy(nn.Module):
    """Returns what it sees; its flow is a linear map of the difference of frames."""

    def setup(self):
        self.update_spynet = nn.Dense(2)

    def __call__(self, masked_frames, *, num_local):
        return masked_frames, self.flows(masked_frames[:, :num_local])

    def flows(self, frames):
        flow = self.update_spynet(frames[:, 1:] - frames[:, :-1])
        return flow, -flow


@pytest.mark.parametrize("flow", [True, False])
def test_an_inpainting_network_sees_0_and_its_flow_is_held_to_the_frozen_one(flow):
    module = Copy()
    variables = module.init(jax.random.key(0), TRUTH, num_local=2)
    generate = e2fgvi_generator(module, flow=flow)(BATCH, variables if flow else {}, jax.random.key(1))
    made, terms = generate(variables, TRUTH, MASK, 2)
    np.testing.assert_array_equal(made, np.where(MASK > 0, 0, TRUTH))
    if not flow:
        assert terms == {}
        return
    assert terms["flow"] > 0.1
    _, known = generate(variables, TRUTH, jnp.zeros_like(MASK), 2)
    assert known["flow"] == 0


class Exact:
    """A diffusion network that knows the clean latents, and notes what else it is shown."""

    def __init__(self, prediction):
        self.prediction, self.shown = prediction, None

    def apply(self, variables, noisy, mask, masked_latents, *, timestep, fps, global_latents):
        self.shown = {"mask": mask, "masked": masked_latents, "timestep": timestep, "global": global_latents}
        signal, sigma = (
            jnp.asarray(table, jnp.float32)[timestep].reshape(-1, 1, 1, 1, 1)
            for table in (SCHEDULE.signal, SCHEDULE.sigma)
        )
        clean, _ = encode_frames(CODEC, {}, TRUTH)
        noise = (noisy - signal * clean) / sigma
        return make_target(self.prediction, clean, noise, signal, sigma) + variables["error"]


def make(prediction="v_prediction", **changed):
    known_weight = changed.pop("known_weight", 1.0)
    model = Exact(prediction)
    loss = make_diffusion_loss(model, SCHEDULE, prediction=prediction, min_snr_gamma=None, known_weight=known_weight)
    options = {"unknown": "black", "drop_global": 0.0, "max_timestep": 0.5}
    return model, diffusion_generator(loss, CODEC, SCHEDULE.num_timesteps, **options | changed)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_step_of_an_exact_prediction_is_the_clip(prediction):
    model, generator = make(prediction)
    made, terms = generator(BATCH, FROZEN, jax.random.key(0))({"error": 0.0}, TRUTH, MASK, 2)
    # Noise is told by a division by its share, a tenth at the least, of float32 numbers.
    np.testing.assert_allclose(made, TRUTH, atol=1e-4)
    assert terms.keys() == {"denoising"} and terms["denoising"] < 1e-8
    np.testing.assert_array_equal(model.shown["mask"], reduce_mask(MASK, 4))
    hidden, _ = encode_frames(CODEC, {}, jnp.where(MASK > 0, -1.0, TRUTH))
    np.testing.assert_allclose(model.shown["masked"], hidden, atol=1e-6)
    seen, _ = encode_frames(CODEC, {}, to_unit_range(BATCH["global_frames"]))
    np.testing.assert_allclose(model.shown["global"], seen, atol=1e-6)


def test_the_denoising_term_is_the_diffusion_loss():
    _, generator = make(known_weight=0.5)
    _, terms = generator(BATCH, FROZEN, jax.random.key(0))({"error": 0.1}, TRUTH, MASK, 2)
    # Of 3 columns of cells, 2 hold unknown pixels.
    np.testing.assert_allclose(terms["denoising"], 0.1**2 * (2 + 0.5) / 3, rtol=1e-3)


def test_timesteps_stay_in_their_share_and_conditions_are_dropped():
    model, generator = make(max_timestep=0.1, drop_global=1.0)
    timesteps = []
    for seed in range(20):
        generator(BATCH, FROZEN, jax.random.key(seed))({"error": 0.0}, TRUTH, MASK, 2)
        timesteps.extend(model.shown["timestep"].tolist())
    assert min(timesteps) == 0 and max(timesteps) == 8
    assert not np.any(model.shown["global"])


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="max_timestep is 0"):
        make(max_timestep=0.0)
    with pytest.raises(ValueError, match="prediction 'y' is unknown"):
        make("y")
