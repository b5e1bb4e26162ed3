"""Checkpoints: state, data position and meta in one Orbax step, named by the number of updates applied."""

import functools
import importlib.metadata
import json
import logging
import math
import os
import pathlib
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

from m3ddm_jax.models import registry
from m3ddm_jax.parallel.processes import gather_text
from m3ddm_jax.training.checksums import find_damage, write_checksums
from m3ddm_jax.training.mirror import is_remote
from m3ddm_jax.training.state import State

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_NAMED_DIFFERENCES = 4


class Checkpoints:
    """The checkpoints of one run: saved in the background, restored onto any mesh.

    folder: made when the first checkpoint is saved; of a disk that all processes share, or of a bucket.
    keep: how many of the latest stay. keep_period: updates; checkpoints at its multiples stay too; 0: none.
    best: name of a metric, of which the best checkpoint stays too, and whether more of it is better; None: none.
    fixed: nested plain values that no checkpoint may differ in (what the networks are, what they learn).
    config, mesh: kept in the meta for the reader.
    on_save: called whenever a checkpoint is saved.

    A checkpoint on a disk has checksums, which are checked when it is restored. That one is written, and how long it
    took, the first process says on the terminal.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int,
        keep_period: int = 0,
        best: tuple[str, bool] | None = None,
        fixed: dict[str, Any],
        config: dict[str, Any],
        mesh: Mesh,
        on_save: Callable[[], None] = lambda: None,
    ):
        self._on_save = on_save
        self._speaks = jax.process_index() == 0
        self._begun = (0, 0.0)
        self._fixed = _plain(fixed)
        self._meta = {
            "fixed": self._fixed,
            "config": _plain(config),
            "versions": versions(),
            "mesh": dict(mesh.shape),
        }
        _drop_empty(folder)
        self._best = best and best[0]
        goodness = best and functools.partial(_goodness, name=best[0], rises=best[1])
        self._quiet = _Quiet()
        absl_logging.get_absl_handler().addFilter(self._quiet)
        self._manager = ocp.CheckpointManager(
            folder if is_remote(folder) else os.path.abspath(folder),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_preserved(keep, keep_period, goodness),
                best_fn=goodness,
                create=True,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._finish),
            ),
            item_names=("state", "data", "meta"),
        )

    def latest_step(self) -> int | None:
        """Updates applied in the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Updates applied in the best checkpoint; None where there is none that was evaluated."""
        return self._manager.best_step() if self._best else None

    def save(self, state: State, step: int, examples_seen: int, metrics: Mapping[str, float] | None = None) -> None:
        """Save after `step` updates; returns once the state is copied, before it is written.

        examples_seen: clips taken from the data, counted over all processes. metrics: of the state, where it was
        evaluated. Raises ValueError where they lack the one whose best is kept.
        """
        if metrics is not None and self._best and self._best not in metrics:
            raise ValueError(f"train.best_metric {self._best!r} is not measured: {', '.join(metrics)} are")
        if step == self.latest_step():
            return
        self._manager.wait_until_finished()  # what is said of the one before would be this one's
        self._begun = (step, time.perf_counter())
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave({"examples_seen": examples_seen}),
                meta=ocp.args.JsonSave(self._meta | {"state": _shapes(state)}),
            ),
            metrics=self._best and metrics and {self._best: float(metrics[self._best])},
        )
        self._on_save()

    def _finish(self) -> None:
        """Called in the background by the first process, where a checkpoint is complete but for its name."""
        step, start = self._begun
        if not is_remote(self._manager.directory):  # buckets have checksums of their own
            for folder in self._manager.directory.glob(f"{step}.*"):
                write_checksums(pathlib.Path(folder))
        print(f"checkpoint {step} written in {time.perf_counter() - start:.1f} s", flush=True)

    def restore(self, abstract_state: State) -> tuple[State, int]:
        """(state, examples seen) of the newest checkpoint that is not damaged, laid out as `abstract_state`.

        Those that are damaged are set aside, with a line, once an older one is restored. Raises ValueError where all
        are, and where the checkpoint is of other networks, or of another task, than this run's.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            if reason := self._damage(step):
                damaged[step] = reason
                continue
            restored = self._restore(step, abstract_state)
            self._set_aside(damaged)
            return restored
        found = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
        raise ValueError(f"no checkpoint in {self._manager.directory} can be restored: {found}")

    def _restore(self, step: int, abstract_state: State) -> tuple[State, int]:
        small = self._read_small(step)
        here = {**flatten_dict(self._fixed, sep="."), **_shapes(abstract_state)}
        there = {**flatten_dict(_without_removed(small.meta["fixed"]), sep="."), **small.meta["state"]}
        check_fit(f"checkpoint {step} in {self._manager.directory}", there, here)
        state = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        ).state
        return state, small.data["examples_seen"]

    def _read_small(self, step: int) -> Any:
        return self._manager.restore(
            step, args=ocp.args.Composite(data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
        )

    def _damage(self, step: int) -> str | None:
        """Why a checkpoint cannot be restored, the same in all processes. They read its small items together, but only
        where none of them has found a change in its part of the files."""
        return _agreed(self._change(step)) or _agreed(self._fault_of_small(step))

    def _change(self, step: int) -> str | None:
        """What has changed in this process's part of a checkpoint's files since they were saved."""
        if is_remote(self._manager.directory):
            return None
        folder = pathlib.Path(self._manager.directory) / str(step)
        try:
            return find_damage(folder, jax.process_index(), jax.process_count())
        except FileNotFoundError:
            if self._speaks:
                print(f"checkpoint {step} has no checksums: it is restored unchecked", file=sys.stderr, flush=True)
            return None

    def _fault_of_small(self, step: int) -> str | None:
        """Why a checkpoint's meta and data cannot be used."""
        try:
            small = self._read_small(step)
            if isinstance(small.meta["fixed"], dict) and isinstance(small.data["examples_seen"], int):
                return None
            return "its meta or data is not what is saved"
        except Exception as error:  # what is damaged raises whatever its bytes lead to
            return f"{type(error).__name__}, {next(iter(str(error).splitlines()), '')}"

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        """Move checkpoints out of the way of those that will have their names."""
        if not damaged:
            return
        aside = self._manager.directory.with_name(f"{self._manager.directory.name}.damaged")
        if self._speaks:
            aside.mkdir(exist_ok=True)
            for step, reason in damaged.items():
                target = aside / f"{step}-{secrets.token_hex(4)}"
                (self._manager.directory / str(step)).rename(target)
                print(f"checkpoint {step} is damaged ({reason}): set aside as {target}", file=sys.stderr, flush=True)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()

    def wait(self) -> None:
        """Return when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and give up the folder."""
        try:
            self._manager.close()
        finally:
            absl_logging.get_absl_handler().removeFilter(self._quiet)


def _preserved(keep: int, keep_period: int, best: Callable[[Any], float] | None) -> policies.PreservationPolicy:
    preserved: list[policies.PreservationPolicy] = [policies.LatestN(keep)]
    if keep_period:
        preserved.append(policies.EveryNSteps(keep_period))
    if best:
        preserved.append(policies.BestN(get_metric_fn=best, n=1, keep_checkpoints_without_metrics=False))
    return policies.AnyPreservationPolicy(preserved)


def _goodness(metrics: Mapping[str, float], *, name: str, rises: bool) -> float:
    """More is better. Checkpoints of a run that had another metric, or none that is a number, are worst."""
    value = metrics.get(name, math.nan)
    return -math.inf if math.isnan(value) else value if rises else -value


class _Quiet(logging.Filter):
    """Leaves out the traces that Orbax's threads log of an error, which is raised where they are waited for, and that a
    checkpoint has no metrics, as between evaluations."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname or not (record.exc_info or "did not provide metrics" in str(record.msg))


def _agreed(found: str | None) -> str | None:
    """What the first process found that found anything, in all of them."""
    if jax.process_count() == 1:
        return found
    return next((text for text in gather_text(found or "") if text), None)


def _drop_empty(folder: str | os.PathLike) -> None:
    """Remove checkpoints that hold nothing, as a failing disk leaves them, with a line."""
    if is_remote(folder):
        return
    if jax.process_index() == 0 and os.path.isdir(folder):
        for path in pathlib.Path(folder).iterdir():
            if path.name.isdigit() and path.is_dir() and not any(path.iterdir()):
                path.rmdir()
                print(f"checkpoint {path.name} in {folder} was empty: it is removed", file=sys.stderr, flush=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("empty checkpoints are removed")


def versions() -> dict[str, str]:
    """Those of the packages that a run's numbers depend on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def check_fit(source: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise one ValueError that names the first few values of a checkpoint which the config has otherwise."""
    differences = [
        f"{name} is {there.get(name, 'absent')} there and {here.get(name, 'absent')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name, "absent") != here.get(name, "absent")
    ]
    if differences:
        more = len(differences) - _NAMED_DIFFERENCES
        named = "; ".join(differences[:_NAMED_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(f"{source} does not fit the config: {named}")


def _without_removed(fixed: dict[str, Any]) -> dict[str, Any]:
    """What a run may not change, without the hyper-parameters that networks of earlier versions had."""
    networks = {name: part for name, part in fixed.items() if isinstance(part, dict) and "kind" in part}
    return fixed | {name: registry.without_removed(part["kind"], part) for name, part in networks.items()}


def _plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    return json.loads(json.dumps(value))


def _shapes(state: State) -> dict[str, list[int]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape) for path, leaf in leaves}
