"""What outpainters over a model are told: settings that are checked, and the dtype that networks compute in."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args, get_origin

import flax.linen as nn
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class CheckedSettings:
    """Base of a pipeline's settings: frozen dataclasses whose whole numbers, numbers and choices are checked.

    Whole numbers are above 0; those of `or_none` fields may be 0.
    Raises ValueError that says what is accepted.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            found, accepted = getattr(self, field.name), None
            if get_origin(field.type) is Literal and found not in get_args(field.type):
                accepted = f"one of {', '.join(get_args(field.type))}"
            elif field.type is int and not (isinstance(found, int) and found >= field.metadata.get("least", 1)):
                accepted = "a whole number, 0 or more" if "least" in field.metadata else "a whole number above 0"
            elif field.type is float and not isinstance(found, int | float):
                accepted = "a number"
            if accepted:
                raise ValueError(f"the setting {field.name} is {found!r}: {accepted} is accepted")

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Self:
        """Settings from plain values by name; raises ValueError for unknown names, and missing ones without default."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                raise ValueError(f"there is no setting {name}: {', '.join(fields)} are known")
        for name, field in fields.items():
            if name not in values and field.default is dataclasses.MISSING:
                raise ValueError(f"the setting {name} is missing")
        return cls(**values)


def or_none(default: int) -> Any:
    """A dataclass field for a whole number that may be 0."""
    return dataclasses.field(default=default, metadata={"least": 0})


def computing_in(dtype: str, network: nn.Module) -> nn.Module:
    """The network, computing in float32 or bfloat16 where it has the choice; raises ValueError for another dtype."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype {dtype!r}: float32 and bfloat16 are accepted")
    return network.clone(dtype=jnp.dtype(dtype)) if hasattr(network, "dtype") else network
