"""Controls of the methods and of their options, made from the table of methods."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal

import gradio as gr

from m3ddm_jax.method_flags import methods_of_options, parse_settings
from m3ddm_jax.pipelines.base import OUTPAINTERS


class MethodControls:
    """A menu of methods, and a control for each option; those of other methods are hidden.

    Made inside a `gr.Blocks`. components: the menu, then the options, in the order of `values`.
    """

    def __init__(self):
        first = next(iter(OUTPAINTERS))
        settings_last = sorted(methods_of_options().items(), key=lambda item: _is_settings(item[1][1]))
        self._table = dict(settings_last)
        self.method = gr.Dropdown(list(OUTPAINTERS), value=first, label="Method", elem_id="method")
        with gr.Accordion("Options of the method", open=False):
            self._none = gr.Markdown("This method has no options.", visible=not self._of(first))
            self.options = {
                name: _control(name, field, kind, visible=first in methods)
                for name, (field, kind, methods) in self._table.items()
            }
            self.seed = gr.Number(0, label="seed", precision=0, minimum=0, visible=OUTPAINTERS[first].stochastic)
        self.components = [self.method, self.seed, *self.options.values()]
        self.method.change(
            self._show, self.method, [self._none, self.seed, *self.options.values()], show_progress="hidden"
        )

    def read(self, method: str, seed: float | None, *values: Any) -> dict[str, Any]:
        """Keywords of `outpaint`: method, seed and the options that were given.

        Raises ValueError for settings without a name.
        """
        own = self._of(method)
        given = {name: value for name, value in zip(self.options, values, strict=True) if name in own}
        for name, value in given.items():
            field, kind, _ = self._table[name]
            if _is_settings(kind):
                given[name] = parse_settings([line.strip() for line in (value or "").splitlines() if line.strip()])
            elif value in (field.default, str(field.default), "", None):
                given[name] = None
            elif kind is int:
                given[name] = _whole(name, value)
        options = {name: value for name, value in given.items() if value is not None}
        return {"method": method, "seed": int(seed or 0), **options}

    def _of(self, method: str) -> list[str]:
        return [name for name, (_, _, methods) in self._table.items() if method in methods]

    def _show(self, method: str) -> list[Any]:
        own = self._of(method)
        stochastic = OUTPAINTERS[method].stochastic
        options = [gr.update(visible=name in own) for name in self.options]
        return [gr.update(visible=not own and not stochastic), gr.update(visible=stochastic), *options]


def _is_settings(kind: Any) -> bool:
    return typing.get_origin(kind) is Mapping


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"`{name}` must be a whole number, found {text!r}") from None


def _control(name: str, field: dataclasses.Field, kind: Any, visible: bool) -> gr.components.Component:
    about = {"label": name.replace("_", " "), "info": field.metadata["help"], "visible": visible}
    if typing.get_origin(kind) is Literal:
        unset = [("default", "")] if field.default is None else []
        return gr.Dropdown([*unset, *typing.get_args(kind)], value=field.default or "", **about)
    if kind is bool:
        return gr.Checkbox(field.default, **about)
    if kind is int:  # gr.Number shows 0 where there is no value
        return gr.Textbox("" if field.default is None else str(field.default), **about)
    if _is_settings(kind):
        return gr.Textbox(lines=2, placeholder="one a line", **about)
    return gr.Textbox(field.default or "", **about)
