"""Controls of the methods' options follow from the table, and give keywords of `outpaint`."""

import pytest

from m3ddm_jax.method_flags import methods_of_options
from m3ddm_jax.pipelines.base import OUTPAINTERS

gr = pytest.importorskip("gradio", reason="the page needs gradio")
from m3ddm_jax.page.controls import MethodControls  # noqa: E402


@pytest.fixture(scope="module")
def controls():
    with gr.Blocks():
        return MethodControls()


def read(controls, method, **changed):
    values = {name: control.value for name, control in controls.options.items()}
    return controls.read(method, 0, *(values | changed).values())


@pytest.mark.parametrize("method", OUTPAINTERS)
def test_untouched_controls_give_no_option(controls, method):
    assert read(controls, method) == {"method": method, "seed": 0}


def test_every_option_has_a_control(controls):
    assert set(controls.options) == set(methods_of_options())


def test_options_are_read(controls):
    changed = {"steps": "3", "propagate": True, "dtype": "bfloat16", "settings": "lines=64\n strides=(4, 1) \n"}
    assert read(controls, "m3ddm", **changed) == {
        "method": "m3ddm",
        "seed": 0,
        "steps": 3,
        "propagate": True,
        "dtype": "bfloat16",
        "settings": {"lines": 64, "strides": (4, 1)},
    }


def test_options_of_other_methods_are_left_out(controls):
    assert read(controls, "blur", steps="3", prefer="sharp") == {"method": "blur", "seed": 0}


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"steps": "many"}, "`steps` must be a whole number, found 'many'"), ({"settings": "lines"}, "NAME=VALUE")],
)
def test_bad_values_are_one_line(controls, changed, message):
    with pytest.raises(ValueError, match=message):
        read(controls, "m3ddm", **changed)
