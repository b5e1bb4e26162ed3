import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from m3ddm_jax.parallel.mesh import make_mesh
from m3ddm_jax.parallel.rules import partition_spec, state_shardings


@pytest.mark.parametrize(
    "shape, spec",
    [
        ((3, 3, 320, 640), P(None, None, None, "fsdp")),
        ((3, 3, 640, 320), P(None, None, "fsdp")),
        ((128, 128), P(None, "fsdp")),  # the last of equals
        ((1026, 8), P(None, "fsdp")),  # 1026 does not divide by 4
        ((1027, 9), P()),  # nothing divides
        ((64, 63), P()),  # small
        ((), P()),
    ],
)
def test_the_longest_axis_that_divides(shape, spec):
    assert partition_spec("params/conv/kernel", shape, 4) == spec


def test_only_what_training_keeps_per_parameter_is_split():
    for path in ("params/a", "ema_params/a", "opt_state/0/mu/a", "critic_params/a", "critic_opt_state/0/mu/a"):
        assert partition_spec(path, (64, 64), 8) == P(None, "fsdp")
    for path in ("batch_stats/a", "spectral/a", "batch_stats/params"):
        assert partition_spec(path, (64, 64), 8) == P()
    assert partition_spec("params/a", (64, 64), 1) == P()


def test_shardings_follow_the_tree():
    shapes = {
        "params": {"w": jax.ShapeDtypeStruct((64, 128), jnp.float32)},
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    found = state_shardings(shapes, make_mesh(data=2, fsdp=4))
    assert found["params"]["w"].spec == P(None, "fsdp") and found["step"].spec == P()


@pytest.mark.parametrize(
    "path, shape, spec",
    [
        ("attn1/to_q/kernel", (1280, 1280), P("fsdp", "tensor")),
        ("attn2/to_k/kernel", (320, 1280), P("fsdp", "tensor")),
        ("attn1/to_out_0/kernel", (1280, 1280), P("tensor", "fsdp")),
        ("ff/net_0_proj/kernel", (1280, 10240), P("tensor", "fsdp")),
        ("ff/net_2/kernel", (5120, 1280), P("tensor", "fsdp")),
        ("conv1/spatial_conv/kernel", (3, 3, 2560, 1280), P(None, None, "fsdp", "tensor")),
        ("conv1/temporal_conv/kernel", (3, 1280, 1280), P(None, "tensor", "fsdp")),
        ("conv1/spatial_conv/kernel", (3, 3, 1280, 640), P(None, None, "fsdp")),  # not wide
        ("attn1/to_q/kernel", (1282, 1282), P()),  # nothing divides
        ("attn1/to_q/bias", (1280,), P()),
    ],
)
def test_kernels_of_wide_levels_are_split_over_tensor_too(path, shape, spec):
    for field in ("params", "ema_params", "opt_state/0/mu"):
        assert partition_spec(f"{field}/block/{path}", shape, 4, 4) == spec
    assert "tensor" not in partition_spec(f"params/block/{path}", shape, 4, 1)
