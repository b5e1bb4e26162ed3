import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from m3ddm_jax.parallel.constrain import constrain
from m3ddm_jax.parallel.mesh import AXES, batch_shards, check_batch_size, make_mesh, process_part, put_batch


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


def test_where_frames_are_split_a_device_has_one_clip_at_a_time():
    mesh = make_mesh(data=2, context=4)
    check_batch_size(mesh, 8, accumulate=4)
    with pytest.raises(ValueError, match="4 clips of a micro-batch meet on a device: train.accumulate=4"):
        check_batch_size(mesh, 8)


def test_slices_divide_data():
    devices = [types.SimpleNamespace(slice_index=number // 4) for number in range(8)]
    with pytest.raises(ValueError, match="on 2 slices: data is 1, a multiple of 2 is accepted"):
        make_mesh(data=1, fsdp=8, devices=devices)


def held_by(processes, **sizes):
    """A mesh whose devices belong to processes as they are listed."""
    shape = {name: sizes.get(name, 1) for name in AXES}
    devices = np.array([types.SimpleNamespace(process_index=process) for process in processes])
    return types.SimpleNamespace(devices=devices.reshape(tuple(shape.values())), shape=shape)


def test_processes_that_hold_the_same_clips_read_the_same_part():
    assert [process_part(held_by([0, 0, 1, 1], data=4), process) for process in (0, 1)] == [(0, 2), (1, 2)]
    # Two hosts hold the frames of a clip together.
    together = held_by([0, 0, 1, 1, 2, 2, 3, 3], data=2, context=4)
    assert [process_part(together, process) for process in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert process_part(held_by([0, 0, 1, 1], context=4), 1) == (0, 1)
    with pytest.raises(ValueError, match="of 2 processes some share a part of their clips"):
        process_part(held_by([0, 0, 0, 1], data=2, tensor=2), 0)


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
