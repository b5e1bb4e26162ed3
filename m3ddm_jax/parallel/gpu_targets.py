"""What XLA asks of a GPU that it compiles for and that is not there."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class _Gpu:
    """kind: JAX's name of the device. In bytes: memory, L2 cache, shared memory of a multiprocessor and, at most, of a
    block; bandwidth: bytes a second. Source: NVIDIA's data sheets and CUDA's tables of compute capabilities."""

    kind: str
    capability: tuple[int, int]
    multiprocessors: int
    cores: int
    clock_ghz: float
    memory: int
    bandwidth: int
    l2_cache: int
    shared_memory: int
    shared_memory_block: int


_KIB, _MIB = 2**10, 2**20
_GPUS = {
    "a100": _Gpu(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 80 * 10**9, 2_039 * 10**9, 40 * _MIB, 164 * _KIB, 163 * _KIB
    ),
    "h100": _Gpu(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 80 * 10**9, 3_352 * 10**9, 50 * _MIB, 228 * _KIB, 227 * _KIB
    ),
    "h200": _Gpu("NVIDIA H200", (9, 0), 132, 128, 1.98, 141 * 10**9, 4_800 * 10**9, 50 * _MIB, 228 * _KIB, 227 * _KIB),
    "b200": _Gpu(
        "NVIDIA B200", (10, 0), 148, 128, 1.965, 180 * 10**9, 7_672 * 10**9, 126 * _MIB, 228 * _KIB, 227 * _KIB
    ),
}
GPUS = tuple(_GPUS)
_GPUS_A_HOST = 8


def target_config(name: str) -> str:
    """XLA's description of a GPU, the text of a stream_executor.GpuTargetConfigProto; name: one of GPUS."""
    gpu = _GPUS[name]
    major, minor = gpu.capability
    return f"""
        platform_name: "CUDA"
        device_description_str: "{gpu.kind}"
        dnn_version_info {{ major: 9 minor: 10 }}
        gpu_device_info {{
          cuda_compute_capability {{ major: {major} minor: {minor} }}
          core_count: {gpu.multiprocessors}
          fpus_per_core: {gpu.cores}
          clock_rate_ghz: {gpu.clock_ghz}
          device_memory_size: {gpu.memory}
          memory_bandwidth: {gpu.bandwidth}
          l2_cache_size: {gpu.l2_cache}
          shared_memory_per_core: {gpu.shared_memory}
          shared_memory_per_block: {48 * _KIB}
          shared_memory_per_block_optin: {gpu.shared_memory_block}
          threads_per_warp: 32
          threads_per_block_limit: 1024
          threads_per_core_limit: 2048
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          block_dim_limit_x: {2**31 - 1}
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
        }}
    """


def topology(count: int) -> str:
    """XLA's name for a number of GPUs, eight a host: slices x hosts x GPUs. Raises ValueError for parts of hosts."""
    if count < 1 or (count > _GPUS_A_HOST and count % _GPUS_A_HOST):
        raise ValueError(f"found {count} GPUs: 1 to {_GPUS_A_HOST}, or a multiple of {_GPUS_A_HOST}, are accepted")
    return f"1x{max(count // _GPUS_A_HOST, 1)}x{min(count, _GPUS_A_HOST)}"
