"""Devices to compile for: TPUs and GPUs that are not there, or CPUs of which one is counted as many."""

import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from m3ddm_jax.parallel import gpu_targets

_CPU = re.compile(r"cpu:(\d+)")
_GPU = re.compile(rf"({'|'.join(gpu_targets.GPUS)}):(\d+)")
_KNOWN = (
    "v5e:4x4, v5p:4x4x8, v6e:16x16, tpu7x:4x4x4 (generation, then chips a side), "
    f"{gpu_targets.GPUS[1]}:8 ({', '.join(gpu_targets.GPUS)}, then how many) and cpu:8 are such as are accepted"
)
# libtpu asks the machine for what a host of TPUs would know, and locks it for one process; neither matters here.
_WITHOUT_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def topology_devices(name: str, slices: int = 1) -> Sequence[jax.Device]:
    """Devices of a topology, to compile for: GENERATION:CHIPSxCHIPS of a TPU pod that need not be there, in as many
    slices; GPU:NUMBER of GPUs that need not be there, eight a host; or cpu:NUMBER.

    Raises ValueError for an unknown topology, and where libtpu or JAX's CUDA plugin, which know them, is missing.
    """
    if cpus := _CPU.fullmatch(name):
        return _cpu_devices(int(cpus[1]) * slices)
    if gpus := _GPU.fullmatch(name):
        if slices > 1:
            raise ValueError(f"topology {name} in {slices} slices: slices are of TPUs, 1 is accepted")
        return _gpu_devices(gpus[1], int(gpus[2]))
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"topology {name} needs libtpu, which is not installed: pip install -r requirements-tpu.txt")
    for variable, value in _WITHOUT_A_TPU.items():
        os.environ.setdefault(variable, value)
    # Else jax would look for a TPU on this machine as soon as libtpu is there.
    jax.config.update("jax_platforms", "cpu")
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        return topologies.get_topology_desc(topology_name=name, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"topology {name!r} is unknown ({reason}): {_KNOWN}") from None


def _gpu_devices(name: str, count: int) -> Sequence[jax.Device]:
    if not _has_cuda_plugin():
        raise ValueError(f"topology {name}:{count} needs JAX's CUDA plugin: pip install 'jax[cuda12]' of jax's version")
    try:
        shape = gpu_targets.topology(count)
    except ValueError as error:
        raise ValueError(f"topology {name}:{count}: {error}") from None
    # Else jax would look for a GPU on this machine.
    jax.config.update("jax_platforms", "cpu")
    target = gpu_targets.target_config(name)
    return topologies.get_topology_desc(platform="cuda", topology_name="", topology=shape, target_config=target).devices


def _has_cuda_plugin() -> bool:
    found = importlib.util.find_spec("jax_plugins") is not None
    return found and any(importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13))


def _cpu_devices(count: int) -> Sequence[jax.Device]:
    jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # devices are counted once, before the first use
        if len(jax.devices("cpu")) < count:
            found = len(jax.devices("cpu"))
            raise ValueError(f"topology cpu:{count}: this process has counted {found} CPU devices already") from None
    return jax.devices("cpu")[:count]
