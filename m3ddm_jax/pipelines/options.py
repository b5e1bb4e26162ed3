"""What outpainters over a model are told: settings that are checked, and the dtype that networks compute in."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax.numpy as jnp

from m3ddm_jax.checked import accepted_instead


@dataclasses.dataclass(frozen=True)
class CheckedSettings:
    """Base of a pipeline's settings: frozen dataclasses whose values are checked against the types of their fields.

    Whole numbers are above 0; those of `or_none` fields may be 0, those of `at_most` fields have a bound.
    Raises ValueError that says what is accepted.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            found = getattr(self, field.name)
            accepted = accepted_instead(field.type, found, **field.metadata)
            if accepted:
                raise ValueError(f"the setting {field.name} is {found!r:.100}: {accepted} is accepted")

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Self:
        """Settings from plain values by name; raises ValueError for unknown names, and missing ones without default."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(values, Mapping):
            raise ValueError(f"the settings are {values!r:.100}: values by name are accepted")
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


def at_most(most: int) -> Any:
    """A dataclass field, without default, for a whole number that has a bound."""
    return dataclasses.field(metadata={"most": most})


def computing_in(dtype: str, network: nn.Module) -> nn.Module:
    """The network, computing in float32 or bfloat16 where it has the choice; raises ValueError for another dtype."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype {dtype!r}: float32 and bfloat16 are accepted")
    return network.clone(dtype=jnp.dtype(dtype)) if hasattr(network, "dtype") else network
