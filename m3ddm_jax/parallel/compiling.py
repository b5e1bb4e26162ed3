"""How XLA compiles what runs: one level for `train`, `bench` and `plan`, and flags for each kind of accelerator."""

import os

import jax

LEVELS = ("O0", "O1", "O2", "O3")
DEFAULT_LEVEL = "O1"
"""Quicker to compile than XLA's own default on TPUs; what `plan` has compiled is then what `train` runs."""

_TPU = (
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
    "--xla_enable_async_all_gather=true",
)
_GPU = (
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_enable_pipelined_all_gather=true",
    "--xla_gpu_enable_pipelined_reduce_scatter=true",
    "--xla_gpu_enable_pipelined_all_reduce=true",
)
# Preset -> (variable of the environment, flags): TPUs' compiler reads its own variable.
_PRESETS = {"tpu": ("LIBTPU_INIT_ARGS", _TPU), "gpu": ("XLA_FLAGS", _GPU)}
PRESETS = ("", *_PRESETS)


def set_up(level: str = DEFAULT_LEVEL, preset: str = "") -> None:
    """Compile at a level, one of LEVELS, with the flags of a preset, one of PRESETS; "" has none.

    Call it before the first use of a device: flags are read once. Flags that the environment has already win.
    """
    jax.config.update("jax_optimization_level", level)
    if preset:
        variable, flags = _PRESETS[preset]
        given = os.environ.get(variable, "")
        added = [flag for flag in flags if flag.partition("=")[0] not in given]
        os.environ[variable] = " ".join([*added, given]).strip()
