"""Devices to compile for: those of a TPU topology that is not there, or CPUs of which one is counted as many."""

import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

_CPU = re.compile(r"cpu:(\d+)")
_KNOWN = "v5e:4x4, v5p:4x4x8, v6e:16x16 (generation, then chips a side) and cpu:8 are such as are accepted"
# libtpu asks the machine for what a host of TPUs would know, and locks it for one process; neither matters here.
_WITHOUT_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def topology_devices(name: str, slices: int = 1) -> Sequence[jax.Device]:
    """Devices of a topology, to compile for: GENERATION:CHIPSxCHIPS of a TPU pod that need not be there, in as many
    slices, or cpu:NUMBER.

    Raises ValueError for an unknown topology, and where libtpu, which knows those of TPUs, is missing.
    """
    if cpus := _CPU.fullmatch(name):
        return _cpu_devices(int(cpus[1]) * slices)
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


def _cpu_devices(count: int) -> Sequence[jax.Device]:
    jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # devices are counted once, before the first use
        if len(jax.devices("cpu")) < count:
            found = len(jax.devices("cpu"))
            raise ValueError(f"topology cpu:{count}: this process has counted {found} CPU devices already") from None
    return jax.devices("cpu")[:count]
