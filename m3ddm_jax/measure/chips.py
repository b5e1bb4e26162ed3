"""What a chip can do at most, by the name that JAX has for it."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """flops: dense bfloat16 operations a second; memory: bytes of a device; bandwidth: bytes a second that it reads
    and writes of them. Source: the makers' data sheets."""

    flops: float
    memory: int
    bandwidth: float


CHIPS = {
    "TPU v4": Chip(137.5e12, 16 * GIB, 614e9),  # a core, of which a chip has two
    "TPU v5 lite": Chip(197e12, 16 * GIB, 819e9),
    "TPU v5": Chip(459e12, 95 * GIB, 2765e9),
    "TPU v6 lite": Chip(918e12, 32 * GIB, 1640e9),
    "TPU7x": Chip(1153.5e12, 96 * GIB, 3690e9),  # one of the two parts of a chip, each a device
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * 10**9, 1555e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * 10**9, 2039e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * 10**9, 3352e9),
    "NVIDIA H200": Chip(989e12, 141 * 10**9, 4800e9),
    "NVIDIA B200": Chip(2250e12, 180 * 10**9, 7672e9),
}
"""`device.device_kind` -> chip; kinds that are not here have no peak that this project knows."""
