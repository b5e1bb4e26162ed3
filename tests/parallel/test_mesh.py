import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from m3ddm_jax.parallel.constrain import constrain
from m3ddm_jax.parallel.mesh import AXES, batch_shards, check_batch_size, make_mesh, put_batch


def test_axes_are_four_and_auto():
    mesh = make_mesh(data=2, fsdp=4)
    assert mesh.axis_names == AXES == ("data", "fsdp", "tensor", "context")
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert batch_shards(mesh) == 8


def test_minus_one_takes_the_rest():
    assert make_mesh(data=-1, fsdp=4).shape["data"] == 2
    assert make_mesh(data=2, fsdp=-1).shape["fsdp"] == 4
    assert make_mesh(devices=jax.devices()[:1]).shape["data"] == 1


@pytest.mark.parametrize(
    "sizes", [{"data": 3}, {"data": 2, "fsdp": 2}, {"data": -1, "fsdp": 16}, {"data": -1, "fsdp": 3}]
)
def test_sizes_that_do_not_fill_the_devices(sizes):
    with pytest.raises(ValueError, match="does not fill 8 device"):
        make_mesh(**sizes)


@pytest.mark.parametrize("sizes", [{"data": -1, "fsdp": -1}, {"data": 0}, {"data": -2}])
def test_sizes_that_mean_nothing(sizes):
    with pytest.raises(ValueError, match="one of them may be -1"):
        make_mesh(**sizes)


def test_batch_sizes():
    mesh = make_mesh(data=2, fsdp=4)
    check_batch_size(mesh, 16, accumulate=2)
    for batch_size, accumulate in [(12, 1), (8, 2), (0, 1), (8, 0)]:
        with pytest.raises(ValueError, match=f"a batch of {batch_size} clips"):
            check_batch_size(mesh, batch_size, accumulate)


def test_a_batch_is_split_in_order():
    mesh = make_mesh(data=2, fsdp=4)
    rows = np.arange(16, dtype=np.float32)[:, None]
    batch = put_batch(mesh, {"fps": rows, "clip_id": np.array(["a"] * 16)})
    assert list(batch) == ["fps"]
    placed = batch["fps"]
    np.testing.assert_array_equal(placed, rows)
    by_device = {shard.device: shard.data for shard in placed.addressable_shards}
    for k, device in enumerate(mesh.devices.flat):
        np.testing.assert_array_equal(by_device[device], rows[2 * k : 2 * k + 2])


def test_constrain_splits_inside_a_mesh_and_leaves_alone_outside():
    x = np.ones((4, 8), np.float32)
    split = jax.jit(lambda x: constrain(x * 2, None, ("data", "fsdp")))
    np.testing.assert_array_equal(split(x), x * 2)
    with jax.set_mesh(make_mesh(data=2, fsdp=4)):
        placed = split(x)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(4, 1)}
