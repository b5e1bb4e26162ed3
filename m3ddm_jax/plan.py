"""Plan a run on a pod that is not there: python -m m3ddm_jax.plan --config=configs/m3ddm.py --topology=v5p:4x4x8.

Compiles the config's training step (or --what=sample, the completion of a batch) ahead of time for TPUs, GPUs or
cpu:NUMBER devices, and prints memory of a device by kind against what it has, what devices exchange, operations,
and whether it fits; with --report the same as JSON. Neither weights nor clips are needed. What has been planned once is
remembered by the hash of its program. With --sweep meshes and rematerialisation are estimated, and the best compiled.
"""

import json
import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from m3ddm_jax import cli
from m3ddm_jax.benchmarks import plan as planning
from m3ddm_jax.benchmarks.report import surroundings, table
from m3ddm_jax.benchmarks.sweep import overridden, sweep
from m3ddm_jax.files.opening import read_json
from m3ddm_jax.files.writing import write_file
from m3ddm_jax.parallel import compiling
from m3ddm_jax.parallel.topology import topology_devices

# Of a sweep: estimates that are shown, and that are compiled.
_SHOWN, _COMPILED = 12, 2


def make_plan(
    config: ConfigDict,
    topology: str,
    *,
    what: str = "train",
    slices: int = 1,
    level: str = compiling.DEFAULT_LEVEL,
    cache: str = "",
) -> dict[str, Any]:
    """The plan of a config for a topology (`benchmarks.plan.plan`), from the folder `cache` where it is there already.

    Raises ValueError where something is unknown, or does not fit.
    """
    devices = topology_devices(topology, slices)
    compiling.set_up(level)
    program = planning.make_program(config, devices, what)
    lowered = program.lower()
    about = {"what": what, "topology": topology, "slices": slices, "optimization level": level}
    name = planning.program_hash(lowered, about, program.mesh)
    path = pathlib.Path(cache).expanduser() / f"{name}.json"
    if cache and (cached := _cached(path)):
        return cached
    result = about | planning.plan(config, program, lowered) | {"program": name}
    if cache:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(result, indent=1) + "\n")
    return result


def _cached(path: pathlib.Path) -> dict[str, Any] | None:
    """A plan that was made before; None where there is none, or it is damaged."""
    try:
        plan = read_json(path)
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) and "program" in plan else None


def make_sweep(config: ConfigDict, topology: str, **options: Any) -> dict[str, Any]:
    """Under "ranking" estimates of all meshes and policies, the best first (benchmarks.sweep); under "plans" the plans
    of the best, or in one line why they do not fit. options: those of `make_plan`. Raises ValueError as that does, and
    where not training is swept."""
    if options["what"] != "train":
        raise ValueError(f"--sweep is of the training step: --what={options['what']} is not accepted with it")
    ranking = sweep(config, topology_devices(topology, options["slices"]))
    plans = {}
    for overrides in list(ranking)[:_COMPILED]:
        try:
            plans[overrides] = make_plan(overridden(config, overrides), topology, **options)
        except ValueError as error:
            plans[overrides] = {"fits": f"no: {error}"}
    return {"ranking": ranking, "plans": plans}


def main() -> None:
    options = flags.FLAGS
    config = planning.with_depth(options.config, options.depth) if options.depth else options.config
    make = make_sweep if options.sweep else make_plan
    result = make(
        config,
        options.topology,
        what=options.what,
        slices=options.slices,
        level=options.optimization_level,
        cache=options.cache,
    )
    if options.sweep:
        print(f"{len(result['ranking'])} estimated, the first are:")
        print(table(dict(list(result["ranking"].items())[:_SHOWN])))
    for overrides, plan in (result["plans"] if options.sweep else {"": result}).items():
        _show(overrides, plan)
    if options.report:
        write_file(options.report, json.dumps(result | surroundings(), indent=1) + "\n")


def _show(overrides: str, plan: dict[str, Any]) -> None:
    """A plan on the terminal, under the overrides that it is of."""
    if overrides:
        print(f"\n{overrides}")
    print(table({name: value for name, value in plan.items() if name != "collectives"}))
    if "collectives" in plan:
        print(table(plan["collectives"]) if plan["collectives"] else "devices exchange nothing")


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "What is planned: a file of configs/; any field can be overridden.")
    flags.DEFINE_string("topology", None, "Devices: v5e:4x4, v5p:4x4x8, v6e:16x16 and the like, h100:8 or cpu:8.")
    flags.DEFINE_integer("slices", 1, "So many of the topology, joined by a slower network.", lower_bound=1)
    flags.DEFINE_enum("what", "train", planning.WHAT, "The training step, or the sampler on a batch.")
    flags.DEFINE_bool("sweep", False, "Estimate every mesh and rematerialisation, and compile the best two.")
    flags.DEFINE_integer("depth", 0, "Plan with so many blocks a level, at full widths; 0: as the config has it.")
    flags.DEFINE_enum("optimization_level", compiling.DEFAULT_LEVEL, compiling.LEVELS, "Of the compiler, as in train.")
    flags.DEFINE_string("cache", "~/.cache/m3ddm_jax/plans", "Folder of what has been planned; empty: plan anew.")
    flags.DEFINE_string("report", None, "JSON file to write.")
    flags.mark_flags_as_required(["config", "topology"])


if __name__ == "__main__":
    _define_flags()
    cli.run("plan", main)
