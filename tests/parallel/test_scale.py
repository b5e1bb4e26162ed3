"""Loss, gradients, one update and one sampled window of a small M3DDM on meshes of eight devices, beside one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from m3ddm_jax.diffusion.guidance import Guidance
from m3ddm_jax.diffusion.schedule import make_schedule
from m3ddm_jax.diffusion.solvers import make_solver
from m3ddm_jax.measure.collectives import find_collectives
from m3ddm_jax.models import registry
from m3ddm_jax.parallel import constrain, rules
from m3ddm_jax.parallel.mesh import make_mesh, put_batch, replicated
from m3ddm_jax.parallel.rules import state_shardings
from m3ddm_jax.pipelines.sampler import Conditions, make_sampler

CLIPS, FRAMES, SIDE, CHANNELS, WIDE = 8, 8, 8, 4, 32
MODEL = registry.build(
    "m3ddm",
    latent_channels=CHANNELS,
    block_out_channels=(8, WIDE),
    attention_levels=(False, False),  # the middle block has it
    layers_per_block=1,
    num_heads=2,
    norm_num_groups=4,
    cross_attention_dim=16,
    global_widths=(4, 4, 4, 8, 8),
    frame_embedding_dim=16,
)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
MESHES = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "context": {"data": 1, "context": 8},
}


def make_batch():
    rng = np.random.default_rng(0)
    shape = (CLIPS, FRAMES, SIDE, SIDE, CHANNELS)
    return {
        "latents": rng.normal(size=shape).astype(np.float32),
        "target": rng.normal(size=shape).astype(np.float32),
        "mask": rng.integers(0, 2, (*shape[:-1], 1)).astype(np.float32),
        "timestep": np.arange(CLIPS, dtype=np.float32) * 100,
        "context": rng.normal(size=(CLIPS, 5, 16)).astype(np.float32),
    }


@functools.cache
def initial():
    """Random numbers as weights, the global encoder's aside: contexts are given here."""
    rng = np.random.default_rng(0)
    shapes = {name: part for name, part in registry.abstract_variables(MODEL)["params"].items() if "global" not in name}
    draw = {True: lambda n: rng.normal(0, 1 / np.sqrt(np.prod(n[:-1])), n), False: lambda n: rng.uniform(0.5, 1, n)}
    return jax.tree.map(lambda leaf: draw[leaf.ndim > 1](leaf.shape).astype(np.float32), shapes)


def loss(params, clips):
    made = MODEL.apply(
        {"params": params}, clips["latents"], clips["mask"], clips["latents"] * (1 - clips["mask"]),
        timestep=clips["timestep"], fps=12.0, context=clips["context"],
    )  # fmt: skip
    return jnp.mean(jnp.square(made - clips["target"]))


def sample_window(params, batch):
    """Latents of one window, in two steps from noise."""
    schedule = make_schedule("cosine", zero_terminal_snr=True)
    solver, guidance = make_solver("dpm++", schedule, 2), Guidance(1.0, 1.0)
    sample = make_sampler(MODEL, schedule, solver, prediction="v_prediction", guidance=guidance)
    clip = {name: value[:1] for name, value in batch.items()}
    masked = clip["latents"] * (1 - clip["mask"])
    guides, black = jnp.zeros((1, FRAMES), bool), jnp.zeros((SIDE, SIDE, CHANNELS))
    given = Conditions(clip["mask"], masked, guides, jnp.full(1, 12.0), clip["context"], clip["context"], black)
    return sample({"params": params}, jnp.zeros_like(masked), clip["target"], given)


def run(devices, sizes):
    """(loss, gradients, updated parameters, window) and the program's text; clips one by one where frames are split."""
    mesh = make_mesh(**sizes, devices=jax.devices()[:devices])
    parts = CLIPS if "context" in sizes else 1
    shardings = state_shardings({"params": initial()}, mesh)["params"]

    def step(params, batch):
        def split(x):
            x = x.reshape(parts, -1, *x.shape[1:])
            return constrain.constrain(x, None, constrain.BATCH_AXES)

        made = jax.lax.map(lambda clips: jax.value_and_grad(loss)(params, clips), jax.tree.map(split, batch))
        value, gradients = jax.tree.map(lambda x: x.mean(0), made)
        updates, _ = OPTIMIZER.update(gradients, OPTIMIZER.init(params))
        updated = optax.apply_updates(params, updates)
        return value, gradients, updated, sample_window(updated, batch)

    whole = replicated(mesh)
    with jax.set_mesh(mesh):
        arguments = jax.device_put(initial(), shardings), put_batch(mesh, make_batch())
        out_shardings = (whole, shardings, shardings, whole)
        compiled = jax.jit(step, out_shardings=out_shardings).lower(*arguments).compile()
        return jax.device_get(compiled(*arguments)), compiled.as_text(), shardings


@pytest.fixture(scope="module")
def wide():
    """The level of the middle block counts as one that is split over `tensor`, its kernels as worth splitting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constrain, "WIDE", WIDE)
        patch.setattr(rules, "_MIN_SIZE", WIDE**2)
        yield


@pytest.fixture(scope="module")
def one(wide):
    return run(1, {"data": 1})[0]


def assert_close(found, expected, tolerance=1e-5):
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale), found, expected)


# Of clips split over `data`, tests/training/test_diffusion_step.py has a step.
@pytest.mark.parametrize(
    "name",
    ["fsdp", pytest.param("tensor", marks=pytest.mark.slow), "context"],
)
def test_eight_devices_compute_what_one_does(one, name):
    found, hlo, shardings = run(8, MESHES[name])
    for part, expected in zip(found, one, strict=True):
        assert_close(part, expected)
    if name == "fsdp":
        check_fsdp(hlo)
    if name == "tensor":
        check_tensor(shardings)
    if name == "context":
        check_context(hlo)


def check_fsdp(hlo):
    """Weights come to the clips: no device gets an activation, or a part of it, of all clips."""
    shapes = [shape for one in find_collectives(hlo) for shape in one.shapes if len(shape) >= 4]
    assert any(shape[:2] == (3, 3) for shape in shapes)
    assert not [shape for shape in shapes if shape[0] in (CLIPS, CLIPS * FRAMES)]


def check_tensor(shardings):
    block = shardings["mid_block"]["attentions_0"]["transformer_blocks_0"]
    assert block["attn1"]["to_q"]["kernel"].spec == P("fsdp", "tensor")
    assert block["attn1"]["to_out_0"]["kernel"].spec == P("tensor", "fsdp")
    assert shardings["mid_block"]["resnets_0"]["conv1"]["spatial_conv"]["kernel"].spec == P(
        None, None, "fsdp", "tensor"
    )


def check_context(hlo):
    """One transformer exchanges frames for cells and back, forwards and backwards, once a clip and a sampler's step."""
    found = find_collectives(hlo)
    exchanges = [one for one in found if one.kind == "all-to-all"]
    assert sum(one.times for one in exchanges) == 4 * CLIPS + 2 * 2
    # On a device an eighth of the activation of 4 x 4 cells.
    assert {one.bytes for one in exchanges} == {4 * FRAMES * 16 * WIDE // 8}
    # The window is handed out whole; of activations nothing is gathered.
    gathered = [one.shapes for one in found if one.kind == "all-gather"]
    assert gathered == [((1, FRAMES, SIDE, SIDE, CHANNELS),)]
    # A clip-level norm sums a number a channel, a convolution over frames sends those of its border.
    assert all(np.prod(shape) < 4096 for one in found if one.kind == "all-reduce" for shape in one.shapes[:1])
