"""What a function keeps at once, from its trace: nothing is computed, compiled or allocated."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal


def peak(jaxpr: ClosedJaxpr | Jaxpr, size_of: Callable[[Any], float], platform: str | None = None) -> float:
    """The most that the values of a program (`jax.make_jaxpr`) are at once, its arguments aside, where each is computed
    in the order of the program, and kept until it has been used last.

    size_of: what a value counts, from its shape and dtype (`aval`). platform: the one, by jax's name, whose branch
    counts where a function depends on it; None: the default. A compiler that fuses needs less: it never writes some of
    these values down.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    last_used = {}
    for place, eqn in enumerate(jaxpr.eqns):
        last_used |= {variable: place for variable in (*eqn.invars, *eqn.outvars) if not isinstance(variable, Literal)}
    last_used |= {variable: len(jaxpr.eqns) for variable in jaxpr.outvars if not isinstance(variable, Literal)}
    ended: dict[int, list] = {}
    for variable, place in last_used.items():
        ended.setdefault(place, []).append(variable)
    live, most, sizes = 0.0, 0.0, {}
    for place, eqn in enumerate(jaxpr.eqns):
        made = {variable: size_of(variable.aval) for variable in eqn.outvars}
        inside = max((peak(inner, size_of, platform) for inner in _programs(eqn, platform)), default=0.0)
        most = max(most, live + max(inside, sum(made.values())))
        live += sum(made.values())
        sizes |= made
        live -= sum(sizes.pop(variable, 0.0) for variable in ended.get(place, ()))
    return most


def equations(jaxpr: ClosedJaxpr | Jaxpr, times: int = 1) -> Iterator[tuple[JaxprEqn, int]]:
    """All operations of a program, those of functions that it calls too, and how often a run makes each: those of a
    scan as often as it has steps, all else once; where a function depends on the platform, those of the default."""
    for eqn in jaxpr.eqns:
        yield eqn, times
        for inner in _programs(eqn):
            yield from equations(inner, times * eqn.params.get("length", 1) if eqn.primitive.name == "scan" else times)


def _programs(eqn: JaxprEqn, platform: str | None = None) -> list[ClosedJaxpr | Jaxpr]:
    if of_platforms := eqn.params.get("branches_platforms"):
        chosen = next((k for k, names in enumerate(of_platforms) if platform in (names or ())), None)
        return [eqn.params["branches"][of_platforms.index(None) if chosen is None else chosen]]
    return [value for value in jax.tree.leaves(eqn.params) if isinstance(value, ClosedJaxpr | Jaxpr)]
