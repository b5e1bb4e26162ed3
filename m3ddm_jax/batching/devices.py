"""The devices of a worker."""

import dataclasses
import re
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Devices:
    """What each worker of a batch needs: a number of cores, GPUs or TPU chips."""

    kind: Literal["cpu", "gpu", "tpu"]
    number: int

    @classmethod
    def parse(cls, text: str) -> "Devices":
        """Devices from KIND:NUMBER such as gpu:1; raises ValueError for another text."""
        match = re.fullmatch(r"(cpu|gpu|tpu):([1-9]\d*)", text)
        if match is None:
            raise ValueError(f"`devices` must be cpu:NUMBER, gpu:NUMBER or tpu:NUMBER such as gpu:1, found {text!r}")
        return cls(match[1], int(match[2]))

    def environment(self, worker: int) -> dict[str, str]:
        """The environment of a process that is to see the GPUs of the worker of that number alone."""
        if self.kind != "gpu":
            return {}
        first = worker * self.number
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(first, first + self.number)))}

    def ray_options(self) -> dict[str, Any]:
        """What Ray reserves for a worker."""
        if self.kind == "cpu":
            return {"num_cpus": self.number}
        if self.kind == "gpu":
            return {"num_cpus": 1, "num_gpus": self.number}
        return {"num_cpus": 1, "resources": {"TPU": self.number}}
