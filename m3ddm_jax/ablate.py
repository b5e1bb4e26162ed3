"""Train the variants of a config and compare them: python -m m3ddm_jax.ablate --config=configs/in2out_tiny.py
--workdir=DIR [--variants=B,F] [--config.any.field=value].

The config's section `variants` holds, by name, the fields in which each variant differs from the rest of the config.
They are trained one after the other, with one seed and equally long, each in DIR/NAME as m3ddm_jax.train does it; what
was stopped goes on. DIR gets ablation.json with all curves.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from m3ddm_jax import cli
from m3ddm_jax.files.writing import write_file
from m3ddm_jax.recipes import make_recipe
from m3ddm_jax.recipes.base import list_validation
from m3ddm_jax.train import train
from m3ddm_jax.training.loop import read_metrics

Curve = list[tuple[int, float]]

# What is compared -> how far a value is from the best. Terms of a loss may differ between variants: it is only shown.
_COMPARED: dict[str, Callable[[float], float]] = {
    "validation_psnr": lambda value: -value,
    "validation_sharpness": lambda value: abs(value - 1),
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A variant that was trained. curves: metric -> (updates, value) in order."""

    parameters: int
    curves: dict[str, Curve]

    def last(self, metric: str) -> float:
        """What a metric was at the end."""
        return self.curves[metric][-1][1]


def ablate(
    config: ConfigDict, workdir: str, names: Collection[str] = (), devices: Sequence[jax.Device] | None = None
) -> dict[str, Trained] | None:
    """Train the variants of a config that are named, or all, on all devices or those given; None where it was stopped.

    Of several processes only the first has metrics: it writes ablation.json, the others return an empty dict.
    Raises ValueError where a variant, config, data or checkpoint do not fit, FloatingPointError where one diverges.
    """
    variants = make_variants(config, names)
    trained = {}
    for name, variant in variants.items():
        print(f"variant {name}", flush=True)
        folder = pathlib.Path(workdir) / name
        state = train(variant, str(folder), devices)
        if int(state.step) < variant.train.steps:
            return None
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        if jax.process_index() == 0:
            trained[name] = Trained(parameters, read_curves(folder / "metrics.jsonl"))
    if jax.process_index() == 0:
        write_report(pathlib.Path(workdir) / "ablation.json", config, trained)
    return trained


def make_variants(config: ConfigDict, names: Collection[str] = ()) -> dict[str, ConfigDict]:
    """Name -> whole config of the variants that are named, or of all, in alphabetical order.

    Raises ValueError where a config has no variants, or none of a name, where a variant sets a field that is not there
    or does not fit its recipe, and where nothing would be measured.
    """
    sections = config.get("variants", ConfigDict())
    if not sections:
        raise ValueError("the config has no section variants: nothing to compare")
    unknown = sorted(set(names) - set(sections))
    if unknown:
        raise ValueError(f"variants {', '.join(unknown)} are unknown: those of {', '.join(sections)} are accepted")
    if not 0 < config.train.evaluate_every <= config.train.steps:
        raise ValueError(
            f"train.evaluate_every is {config.train.evaluate_every}: 1 to {config.train.steps}, the steps, are "
            "accepted, as variants are compared by what is measured then"
        )
    return {name: _make_variant(config, name) for name in sections if name in names or not names}


def _make_variant(config: ConfigDict, name: str) -> ConfigDict:
    variant = config.copy_and_resolve_references().lock()
    try:
        variant.update(config.variants[name])
        make_recipe(variant)  # what is wrong with the last one is said before the first is trained
        if not list_validation(variant)[0]:
            raise ValueError("no source holds clips out to compare variants by: name some in data.validation")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"variant {name}: {error.args[0]}") from error
    return variant


def read_curves(path: pathlib.Path) -> dict[str, Curve]:
    """The curves of a run's metrics.jsonl, by the names of the metrics."""
    curves: dict[str, Curve] = {}
    for values in read_metrics(path):
        step = values.pop("step")
        for name, value in values.items():
            curves.setdefault(name, []).append((step, value))
    return curves


def write_report(path: pathlib.Path, config: ConfigDict, trained: Mapping[str, Trained]) -> None:
    """Write what was compared, and all curves, as JSON."""
    common = config.to_dict()
    differences = common.pop("variants")
    variants = {name: {"differs": differences[name], **dataclasses.asdict(run)} for name, run in trained.items()}
    write_file(path, json.dumps({"config": common, "variants": variants}))


def format_table(trained: Mapping[str, Trained]) -> str:
    """Of each variant its size and what it reached in the end, the best of a column with a star."""
    rows = [["variant", "parameters", *_COMPARED, "loss"]]
    best = {metric: min(away(run.last(metric)) for run in trained.values()) for metric, away in _COMPARED.items()}
    for name, run in trained.items():
        cells = (
            f"{run.last(metric):.3f}{'*' if away(run.last(metric)) == best[metric] else ' '}"
            for metric, away in _COMPARED.items()
        )
        rows.append([name, f"{run.parameters:,}", *cells, f"{run.last('loss'):.4f}"])
    return _aligned(rows)


def format_curve(trained: Mapping[str, Trained], metric: str) -> str:
    """A metric of all variants, a line for each time at which it was measured."""
    curves = [dict(run.curves[metric]) for run in trained.values()]
    rows = [[str(step), *(f"{curve[step]:.3f}" for curve in curves)] for step in curves[0]]
    return f"{metric}\n{_aligned([['step', *trained], *rows])}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines, their cells to the right of columns as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(line) for line in lines)


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Whose variants: a file of configs/; any field can be overridden.")
    flags.DEFINE_string("workdir", None, "Folder of the runs; those that are found there go on.")
    flags.DEFINE_list("variants", [], "Names of those to train; all by default.")
    flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    options = flags.FLAGS
    trained = ablate(options.config, options.workdir, options.variants)
    if trained is None:
        print("stopped: the same command goes on")
    elif trained:
        parts = [format_curve(trained, metric) for metric in _COMPARED]
        print("\n\n".join(["", *parts, format_table(trained)]))


if __name__ == "__main__":
    _define_flags()
    cli.run("ablate", main)
