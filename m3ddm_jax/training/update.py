"""The update that all families share: optimizer, average, spike policy, metrics."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from m3ddm_jax.training.ema import update_ema
from m3ddm_jax.training.optim import current_rate, skipped_in_a_row

AnyState = TypeVar("AnyState")
Metrics = dict[str, jax.Array]


def apply_update(
    state: AnyState,
    grads: Any,
    optimizer: optax.GradientTransformation,
    *,
    spike_patience: int,
    ema_decay: float | None = None,
    network: str = "",
    begin: int = 0,
    rate: jax.Array | None = None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[AnyState, Metrics]:
    """(the state after one update of a network, metrics); `step` stays, because a step may update several networks.

    network: beginning of the names of its fields in the state and of its metrics: params, opt_state, ema_params.
    ema_decay: of the average; None where the network has none. begin: value of `step` from which updates count; before
    it nothing changes. rate: factor of the updates. more: further fields, replaced unless the optimizer skips.
    spike_patience: updates in a row that the optimizer may skip (optim.skip_spikes).
    Metrics, float32: grad_norm, before clipping, update_norm, and param_norm before the update; those of each part at
    the top of the parameters, NORM/PART; learning_rate, of a Scheduled optimizer, times the factor of the updates;
    of an optimizer that skips updates `skipped`, 1 where it has skipped
    this one, and `stuck`, 1 where it has skipped as many in a row as `spike_patience`.
    """
    params, old_opt_state = (getattr(state, f"{network}{name}") for name in ("params", "opt_state"))
    updates, opt_state = optimizer.update(grads, old_opt_state, params)
    if rate is not None:
        updates = jax.tree.map(lambda update: rate * update, updates)
    fields = {f"{network}params": optax.apply_updates(params, updates), f"{network}opt_state": opt_state}
    unless_skipped = dict(more)
    if ema_decay is not None:
        average, count = getattr(state, f"{network}ema_params"), jnp.maximum(state.step - begin, 0)
        unless_skipped[f"{network}ema_params"] = update_ema(average, fields[f"{network}params"], count, ema_decay)
    measured = {"grad_norm": grads, "update_norm": updates, "param_norm": params}
    metrics = {f"{network}{name}": norm for kind, tree in measured.items() for name, norm in _norms(kind, tree).items()}
    if (learning_rate := current_rate(optimizer, old_opt_state)) is not None:
        metrics[f"{network}learning_rate"] = learning_rate if rate is None else rate * learning_rate
    in_a_row = skipped_in_a_row(opt_state)
    if in_a_row is not None:
        unless_skipped = _where(in_a_row > 0, _of(state, unless_skipped), unless_skipped)
        metrics["skipped"] = (in_a_row > 0).astype(jnp.float32)
        metrics["stuck"] = (in_a_row >= spike_patience).astype(jnp.float32)
    fields |= unless_skipped
    if begin:
        fields = _where(state.step >= begin, fields, _of(state, fields))
    return state.replace(**fields), metrics


def joined(first: Metrics, second: Metrics) -> Metrics:
    """The metrics of two networks' updates: a step is skipped, or stuck, where one of them is."""
    shared = {name: jnp.maximum(first[name], second[name]) for name in ("skipped", "stuck") if name in first}
    return first | second | shared


def _norms(name: str, tree: Mapping[str, Any]) -> Metrics:
    """The norm of a tree, and of each part at its top."""
    return {name: optax.tree.norm(tree)} | {
        f"{name}/{part}": optax.tree.norm(of_part) for part, of_part in tree.items()
    }


def _of(state: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(state, name) for name in names}


def _where(condition: jax.Array, chosen: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)
