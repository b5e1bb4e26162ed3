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
