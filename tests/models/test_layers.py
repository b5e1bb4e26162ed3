import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from m3ddm_jax.measure.collectives import find_collectives
from m3ddm_jax.models import layers
from m3ddm_jax.parallel import constrain
from m3ddm_jax.parallel.mesh import make_mesh


def test_group_norm_equals_torch_with_a_large_mean():
    x = np.random.default_rng(0).normal(50, 0.1, (2, 3, 4, 5, 8)).astype(np.float32)
    norm = layers.GroupNorm(4)
    variables = {"params": {"scale": jnp.arange(1.0, 9.0), "bias": jnp.arange(8.0)}}
    reference = torch.nn.functional.group_norm(
        torch.from_numpy(np.moveaxis(x, -1, 1).copy()).double(),
        4,
        torch.arange(1.0, 9.0).double(),
        torch.arange(8.0).double(),
    )
    # Means of 50 in float32 leave 4e-6 of 0.1, times the scale of 8.
    np.testing.assert_allclose(norm.apply(variables, x), np.moveaxis(reference.numpy(), 1, -1), atol=2e-3)


def test_group_norm_of_one_colour_is_its_bias():
    out = layers.GroupNorm(2).init_with_output(jax.random.key(0), jnp.full((1, 1, 2, 2, 4), 7.0))[0]
    np.testing.assert_array_equal(out, 0)


def test_temporal_conv_starts_as_identity_and_equals_a_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 5, 2, 3, 4))
    conv = layers.TemporalConv(4)
    out, variables = conv.init_with_output(jax.random.key(1), x)
    np.testing.assert_allclose(out, x, atol=1e-6)
    kernel = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    out = conv.apply({"params": {**variables["params"], "kernel": kernel}}, x)
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    expected = sum(padded[:, tap : tap + 5] @ kernel[tap] for tap in range(3))
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_a_split_temporal_conv_sums_once_between_devices(monkeypatch):
    monkeypatch.setattr(constrain, "WIDE", 8)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 2, 3, 8)).astype(np.float32)
    params = {"kernel": rng.normal(size=(3, 8, 8)), "bias": rng.normal(size=8)}
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)

    def run(params, x):
        out, backward = jax.vjp(lambda params, x: layers.TemporalConv(8).apply({"params": params}, x), params, x)
        return out, *backward(jnp.sin(out))

    mesh = make_mesh(data=2, tensor=4)
    specs = {"kernel": P(None, "tensor"), "bias": P()}, P("data", None, None, None, "tensor")
    given = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda leaf: isinstance(leaf, P))
    made = (NamedSharding(mesh, P("data")), *given)
    with jax.set_mesh(mesh):
        compiled = jax.jit(run, in_shardings=given, out_shardings=made).lower(params, x).compile()
        found = compiled(*jax.device_put((params, x), given))
    # Gradients need no sum between those who share a product, and what is gathered or moved would be an activation.
    exchanged = [(one.kind, one.shapes) for one in find_collectives(compiled.as_text()) if one.devices == 4]
    assert exchanged == [("all-reduce", ((1, 5, 2, 3, 8),))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, jax.jit(run)(params, x))
