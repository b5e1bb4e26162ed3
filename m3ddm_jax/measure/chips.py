"""What a chip can do at most, by the name that JAX has for it."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """flops: dense bfloat16 operations a second; memory: bytes of a device. Source: the makers' data sheets."""

    flops: float
    memory: int


CHIPS = {
    "TPU v4": Chip(137.5e12, 16 * GIB),  # a core, of which a chip has two
    "TPU v5 lite": Chip(197e12, 16 * GIB),
    "TPU v5": Chip(459e12, 95 * GIB),
    "TPU v6 lite": Chip(918e12, 32 * GIB),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * 10**9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * 10**9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * 10**9),
    "NVIDIA H200": Chip(989e12, 141 * 10**9),
}
"""`device.device_kind` -> chip; kinds that are not here have no peak that this project knows."""
