import jax
import pytest

from m3ddm_jax.measure.chips import CHIPS
from m3ddm_jax.parallel import topology
from m3ddm_jax.parallel.mesh import make_mesh
from m3ddm_jax.parallel.topology import topology_devices


@pytest.fixture
def libtpu():
    pytest.importorskip("libtpu", reason="libtpu is not installed (requirements-tpu.txt)")


def test_cpu_devices_are_counted_as_many():
    assert len(jax.devices()) == 8  # counted here, once for the process
    assert len(topology_devices("cpu:4")) == len(topology_devices("cpu:2", slices=2)) == 4
    with pytest.raises(ValueError, match="cpu:99: this process has counted 8 CPU devices already"):
        topology_devices("cpu:99")


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs libtpu, which is not installed: pip install -r requirements-tpu.txt"):
        topology_devices("v5e:4x4")


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(("name", "slices", "count"), [("v5e:4x4", 1, 16), ("v5p:4x4x8", 1, 128), ("v6e:4x4", 2, 32)])
def test_topologies_that_are_not_here(name, slices, count):
    devices = topology_devices(name, slices)
    assert len(devices) == count and devices[0].platform == "tpu"
    mesh = make_mesh(fsdp=4, tensor=2, devices=devices)
    # The slower network is crossed along data alone.
    for part in mesh.devices.reshape(mesh.shape["data"], -1):
        assert len({getattr(device, "slice_index", None) for device in part}) == 1


@pytest.mark.parametrize(
    ("name", "count", "kind"), [("h100:8", 8, "NVIDIA H100 80GB HBM3"), ("b200:16", 16, "NVIDIA B200")]
)
def test_gpus_that_are_not_here(name, count, kind):
    if not topology._has_cuda_plugin():
        pytest.skip("JAX's CUDA plugin is not installed (jax[cuda12])")
    devices = topology_devices(name)
    assert len(devices) == count and {device.device_kind for device in devices} == {kind} and kind in CHIPS
    assert len({device.process_index for device in devices}) == -(-count // 8)


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [("h100:12", 1, "found 12 GPUs: 1 to 8, or a multiple of 8, are accepted"), ("h100:8", 2, "slices are of TPUs")],
)
def test_gpus_that_no_host_has(name, slices, message, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ValueError, match=f"topology {name}.*{message}"):
        topology_devices(name, slices)


def test_without_the_cuda_plugin_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"topology h100:8 needs JAX's CUDA plugin: pip install 'jax\[cuda12\]'"):
        topology_devices("h100:8")


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("name", ["v99:4x4", "v5e:3x5", "somewhere"])
def test_unknown_topologies(name):
    with pytest.raises(ValueError, match=f"topology '{name}' is unknown .* are such as are accepted"):
        topology_devices(name)
