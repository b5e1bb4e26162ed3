"""What a worker needs, as Ray and CUDA are told."""

import pytest

from m3ddm_jax.batching.devices import Devices


def test_processes_see_gpus_of_their_own():
    devices = Devices.parse("gpu:2")
    assert [devices.environment(worker) for worker in (0, 1)] == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    assert Devices.parse("cpu:4").environment(1) == {}


def test_ray_reserves_what_is_asked_for():
    assert Devices.parse("cpu:4").ray_options() == {"num_cpus": 4}
    assert Devices.parse("gpu:2").ray_options() == {"num_cpus": 1, "num_gpus": 2}
    assert Devices.parse("tpu:4").ray_options() == {"num_cpus": 1, "resources": {"TPU": 4}}


@pytest.mark.parametrize("text", ["", "2", "gpu", "gpu:0", "gpu:1.5", "xpu:1", "gpu:1 "])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="`devices` must be cpu:NUMBER, gpu:NUMBER or tpu:NUMBER such as gpu:1"):
        Devices.parse(text)
