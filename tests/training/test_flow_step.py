import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.flow.region_fill import fill_laplace
from m3ddm_jax.losses.flow import completion_terms
from m3ddm_jax.training.flow_step import (
    FlowWeights,
    complete_flow,
    endpoint_error,
    make_flow_step,
    make_flow_tasks,
)
from m3ddm_jax.training.optim import make_stepped_optimizer, skip_spikes
from m3ddm_jax.training.state import create_state

SIDE = 16


class Shift:
    """A network in little: it adds a learnt shift to the middle flow, and tells what it was called with."""

    num_frames, interval = 3, 2

    def apply(self, variables, flows, masks, shifts):
        self.called = flows, masks, shifts
        flow = flows[:, 1] + variables["params"]["shift"]
        return flow, flow[:, ::4, ::4] / 4, flow[:, ::2, ::2] / 2


VARIABLES = {"params": {"shift": jnp.array([0.5, -0.25])}}


@pytest.fixture(scope="module")
def batch():
    """Two clips of 6 frames, three flows; the first is hidden at its sides, the second where an object is."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SIDE
    flow = np.stack([rows - 0.3, columns], axis=-1) * rng.uniform(1, 2, (2, 3, 1, 1, 1))
    mask = np.zeros((2, 6, SIDE, SIDE, 1), np.uint8)
    mask[0, :, :, :4] = mask[1, :, 5:11, 6:12] = 1
    return {
        "video": rng.integers(0, 255, (2, 6, SIDE, SIDE, 3), np.uint8),
        "mask": mask,
        "flow": flow.astype(np.float32),
    }


@pytest.fixture(scope="module")
def step():
    optimizer = skip_spikes(make_stepped_optimizer(1e-2, decay_every=0, clip_norm=1.0), 5.0)
    make = make_flow_step(Shift(), optimizer, weights=FlowWeights(), ema_decay=0.9, spike_patience=2)
    return optimizer, jax.jit(make)


def test_tasks_are_flows_filled_smoothly_with_the_frames_between_which_the_middle_one_leads(batch):
    task = make_flow_tasks(batch, 2)
    np.testing.assert_array_equal(task.masks, batch["mask"][:, :5:2])
    np.testing.assert_array_equal(task.mask, batch["mask"][:, 2])
    np.testing.assert_array_equal(task.truth, batch["flow"][:, 1])
    np.testing.assert_allclose(task.images[0], batch["video"][:, 2] / 255, rtol=1e-6)
    np.testing.assert_allclose(task.images[1], batch["video"][:, 3] / 255, rtol=1e-6)
    np.testing.assert_allclose(task.middle, fill_laplace(batch["flow"][:, 1], task.mask), atol=1e-5)
    # Pictures of other sizes of motion than the truth's do not leak: what was under the mask is not seen.
    other = batch | {"flow": np.where(batch["mask"][:, :5:2] > 0, 9.0, batch["flow"])}
    np.testing.assert_allclose(make_flow_tasks(other, 2).filled, task.filled, atol=1e-5)


def test_flow_of_clips_that_have_none_is_estimated_in_the_direction_they_are_seen(batch):
    seen = []

    def estimate(first, second):
        seen.append((np.asarray(first), np.asarray(second)))
        return jnp.broadcast_to(jnp.array([1.0, 2.0]), (*first.shape[:3], 2))

    clips = {name: batch[name] for name in ("video", "mask")}
    task = make_flow_tasks(clips, 2, estimate, reverse=jnp.array([False, True]))
    ((first, second),) = seen
    video = batch["video"].astype(np.float32)
    np.testing.assert_array_equal(first, np.concatenate([video[0, :5:2], video[1, 5:0:-2]]))
    np.testing.assert_array_equal(second, np.concatenate([video[0, 1::2], video[1, 4::-2]]))
    np.testing.assert_array_equal(task.masks[1], batch["mask"][1, 5:0:-2])
    assert (np.asarray(task.truth) == [1, 2]).all() and task.filled.shape == batch["flow"].shape


def test_the_network_is_told_how_many_frames_lie_between_flows(batch):
    model, task = Shift(), make_flow_tasks(batch, 2)
    complete_flow(model, VARIABLES, task)
    flows, masks, shifts = model.called
    assert flows is task.filled and masks is task.masks and list(shifts) == [2, 0, -2]


def test_the_endpoint_error_is_the_mean_distance_under_the_mask(batch):
    task = make_flow_tasks(batch, 2)
    off = task.truth + jnp.where(task.mask > 0, jnp.array([3.0, -4.0]), 100.0)
    assert endpoint_error(off, task) == pytest.approx(5, rel=1e-6)


def test_an_update_follows_the_weighted_terms(batch, step):
    optimizer, update = step
    state = create_state(VARIABLES, optimizer, jax.random.key(1))
    after, metrics = update(state, batch, {})
    task = make_flow_tasks(batch, 2)
    flows = complete_flow(Shift(), VARIABLES, task)
    terms = completion_terms(flows, task.truth, task.mask, task.images)
    weights = vars(FlowWeights())
    assert terms.keys() == weights.keys()
    for name, term in terms.items():
        assert metrics[name] == pytest.approx(float(term), rel=1e-4)
    assert metrics["loss"] == pytest.approx(sum(weights[n] * float(terms[n]) for n in terms), rel=1e-4)
    assert metrics["endpoint_error"] == pytest.approx(float(endpoint_error(flows[0], task)), rel=1e-4)
    assert metrics["endpoint_error_filled"] == pytest.approx(float(endpoint_error(task.middle, task)), rel=1e-4)
    assert after.step == 1
    # Adam's first step is of the learning rate's length, here back to no shift; the average begins with what it is.
    assert after.params["shift"].tolist() == pytest.approx([0.49, -0.24], abs=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after.ema_params, after.params)
    for _ in range(60):
        after, metrics = update(after, batch, {})
    assert np.abs(after.params["shift"]).max() < 0.05
    assert metrics["valid"] < 0.05


@pytest.mark.parametrize("value", [0, 1])
def test_masks_without_a_hole_or_without_anything_known_are_finite(batch, step, value):
    optimizer, update = step
    state = create_state(VARIABLES, optimizer, jax.random.key(1))
    after, metrics = update(state, batch | {"mask": np.full_like(batch["mask"], value)}, {})
    assert all(np.isfinite(found) for found in metrics.values()) and np.isfinite(after.params["shift"]).all()
    if value == 0:
        assert metrics["hole"] == metrics["ternary"] == metrics["endpoint_error"] == 0


def test_a_skipped_update_changes_nothing_but_the_step(batch, step):
    optimizer, update = step
    before, metrics = update(create_state(VARIABLES, optimizer, jax.random.key(1)), batch, {})
    assert (metrics["skipped"], metrics["stuck"]) == (0, 0)
    after = before
    for stuck in (0, 1):
        after, metrics = update(after, batch | {"flow": np.full_like(batch["flow"], np.nan)}, {})
        assert np.isnan(metrics["loss"]) and (metrics["skipped"], metrics["stuck"]) == (1, stuck)
    assert after.step == 3
    found, kept = ((s.params, s.ema_params, s.opt_state.inner) for s in (after, before))
    jax.tree.map(np.testing.assert_array_equal, found, kept)


def test_the_learning_rate_falls_in_steps():
    for decay_every, expected in ((3, 1e-3), (0, 1e-2)):
        optimizer = make_stepped_optimizer(1e-2, decay_every=decay_every, clip_norm=1.0)
        params = {"a": jnp.ones(2)}
        state, sizes = optimizer.init(params), []
        for _ in range(4):
            updates, state = optimizer.update({"a": jnp.ones(2)}, state, params)
            sizes.append(-float(updates["a"][0]))
        assert sizes == pytest.approx([1e-2, 1e-2, 1e-2, expected], rel=1e-4)


def test_weights_are_not_negative():
    with pytest.raises(ValueError, match="'half': -1.*0 or more is accepted"):
        FlowWeights(half=-1)
