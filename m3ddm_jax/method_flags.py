"""The command line's side of the table of methods: flags, checks and help from the options of each method."""

import ast
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from absl import flags

from m3ddm_jax.pipelines.base import OUTPAINTERS


def methods_of_options() -> dict[str, tuple[dataclasses.Field, Any, list[str]]]:
    """Name of an option -> (its field, its type without None, the methods that have it), in the table's order."""
    found: dict[str, tuple[dataclasses.Field, Any, list[str]]] = {}
    for method, row in OUTPAINTERS.items():
        kinds = typing.get_type_hints(row.options)
        for field in dataclasses.fields(row.options):
            found.setdefault(field.name, (field, _without_none(kinds[field.name]), []))[2].append(method)
    return found


def flag_of(field: dataclasses.Field, renamed: Mapping[str, str] = types.MappingProxyType({})) -> str:
    """The flag of an option. renamed: flags with another name in a command."""
    name = field.metadata.get("flag", field.name)
    return renamed.get(name, name)


def define(renamed: Mapping[str, str] = types.MappingProxyType({})) -> None:
    """Define a flag for each option of each method; None counts as not given."""
    flags.disclaim_key_flags()  # they are the command's, whose --help shows them
    for field, kind, methods in methods_of_options().values():
        flag, about = flag_of(field, renamed), field.metadata
        default = "" if field.default in (None, False) else f"; by default {field.default}"
        text = f"{', '.join(methods)}: {about['help']}{default}."
        if typing.get_origin(kind) is Literal:
            flags.DEFINE_enum(flag, None, list(typing.get_args(kind)), text)
        elif kind is bool:
            flags.DEFINE_boolean(flag, None, text)
        elif kind is int:
            flags.DEFINE_integer(flag, None, text, lower_bound=about.get("least"))
        elif typing.get_origin(kind) is Mapping:
            flags.DEFINE_multi_string(flag, [], text)
        else:
            flags.DEFINE_string(flag, None, text)


def read(values: Any, renamed: Mapping[str, str] = types.MappingProxyType({})) -> dict[str, Any]:
    """The values of all options, by their names, that flags give; those that are not given are left out."""
    options = {}
    for name, (field, kind, _) in methods_of_options().items():
        value = getattr(values, flag_of(field, renamed))
        if typing.get_origin(kind) is Mapping:
            value = parse_settings(value)
        if value is not None:
            options[name] = value
    return options


def parse_settings(texts: Sequence[str]) -> dict[str, Any] | None:
    """Settings from NAME=VALUE texts, numbers and tuples as Python writes them, all else as text; None for none.

    Raises ValueError for a text without a name.
    """
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"--set must be NAME=VALUE such as solver=plms, found {text!r}")
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    return settings or None


def _without_none(kind: Any) -> Any:
    """The type itself of `type | None`; of several, the first."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind
