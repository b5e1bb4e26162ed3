"""Options of methods are declared once; flags, checks and help follow from the table."""

import dataclasses
import inspect
import pkgutil

import pytest
from absl import flags

from eval import run as evaluation
from m3ddm_jax import method_flags
from m3ddm_jax.pipelines.base import OUTPAINTERS, Options


@pytest.mark.parametrize("name", OUTPAINTERS)
def test_a_method_has_the_options_of_its_row_and_no_defaults_of_its_own(name):
    row = OUTPAINTERS[name]
    made = pkgutil.resolve_name(row.target)
    if row.options is Options:
        assert not inspect.signature(made).parameters
    else:
        assert issubclass(made, row.options) and made.__init__ is row.options.__init__


def test_an_option_is_the_same_in_all_methods_that_have_it():
    found = {}
    for row in OUTPAINTERS.values():
        for field in dataclasses.fields(row.options):
            if field.name != "settings":
                assert found.setdefault(field.name, field.default) == field.default
                assert field.metadata["help"]


@pytest.mark.parametrize("renamed", [{}, evaluation._RENAMED])
def test_every_option_has_a_flag_that_names_its_methods(renamed, monkeypatch):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    for name in ("string", "enum", "integer", "boolean", "multi_string"):
        define = getattr(flags, f"DEFINE_{name}")
        wrapped = lambda *args, _define=define, **options: _define(*args, flag_values=values, **options)  # noqa: E731
        monkeypatch.setattr(flags, f"DEFINE_{name}", wrapped)
    method_flags.define(renamed)
    values(["outpaint", "--steps=3", "--set=lines=64", "--propagate", "--dtype=bfloat16", "--prefer=sharp"])
    read = method_flags.read(values, renamed)
    assert read == {
        "steps": 3,
        "settings": {"lines": 64},
        "propagate": True,
        "dtype": "bfloat16",
        "prefer": "sharp",
    }
    assert values["steps"].help == "m3ddm, globalpaint: denoising steps; else the model's default."
    assert values["dtype"].help.endswith("m3ddm, globalpaint, in2out: what networks compute in; by default float32.")
    assert ("method_preset" in values) == bool(renamed)
    with pytest.raises(flags.IllegalFlagValueError, match="prefer"):
        values(["outpaint", "--prefer=best"])
    with pytest.raises(flags.IllegalFlagValueError, match="steps"):
        values(["outpaint", "--steps=0"])
