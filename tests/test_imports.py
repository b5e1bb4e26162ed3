"""Who may import whom, read from the syntax trees of the project."""

import ast
import functools
import graphlib
import pathlib

import pytest

import m3ddm_jax
from m3ddm_jax.pipelines.base import OUTPAINTERS

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Room -> what of ours it may import besides itself and m3ddm_jax.types. A room that does not exist yet is allowed.
ROOMS = {
    "m3ddm_jax.types": set(),
    "m3ddm_jax.files": set(),
    "m3ddm_jax.checked": set(),
    "m3ddm_jax.cli": set(),
    "m3ddm_jax.method_flags": {"m3ddm_jax.pipelines.base"},
    "m3ddm_jax.outpaint_flags": {
        "m3ddm_jax.api.targets",
        "m3ddm_jax.cli",
        "m3ddm_jax.method_flags",
        "m3ddm_jax.pipelines.base",
        "m3ddm_jax.video",
    },
    "m3ddm_jax.api": {"m3ddm_jax.pipelines.base", "m3ddm_jax.geometry", "m3ddm_jax.video", "m3ddm_jax.weights"},
    "m3ddm_jax.batching": {"m3ddm_jax.api", "m3ddm_jax.video"},
    "m3ddm_jax.scenes": set(),
    "m3ddm_jax.parallel": set(),
    "m3ddm_jax.geometry": set(),
    "m3ddm_jax.diffusion": set(),
    "m3ddm_jax.video": set(),
    "m3ddm_jax.measure": set(),
    "m3ddm_jax.flow": set(),
    "m3ddm_jax.completion": set(),
    "m3ddm_jax.models": {"m3ddm_jax.flow", "m3ddm_jax.parallel.constrain"},
    "m3ddm_jax.losses": {"m3ddm_jax.models", "m3ddm_jax.flow"},
    "m3ddm_jax.weights": {"m3ddm_jax.models"},
    "m3ddm_jax.pipelines": {
        "m3ddm_jax.models",
        "m3ddm_jax.diffusion",
        "m3ddm_jax.flow",
        "m3ddm_jax.completion",
        "m3ddm_jax.geometry",
        "m3ddm_jax.video",
        "m3ddm_jax.weights",
        "m3ddm_jax.parallel",
    },
    "m3ddm_jax.page": {
        "m3ddm_jax.api",
        "m3ddm_jax.geometry",
        "m3ddm_jax.method_flags",
        "m3ddm_jax.pipelines.base",
        "m3ddm_jax.scenes.scene",
        "m3ddm_jax.video",
    },
    "m3ddm_jax.training": {
        "m3ddm_jax.models",
        "m3ddm_jax.diffusion",
        "m3ddm_jax.losses",
        "m3ddm_jax.flow",
        "m3ddm_jax.parallel",
        "m3ddm_jax.measure",
    },
    "m3ddm_jax.recipes": {
        "m3ddm_jax.models",
        "m3ddm_jax.diffusion",
        "m3ddm_jax.losses",
        "m3ddm_jax.flow",
        "m3ddm_jax.parallel",
        "m3ddm_jax.measure",
        "m3ddm_jax.training",
        "m3ddm_jax.weights",
        "m3ddm_jax.pipelines",
        "m3ddm_jax.video",
        "data",
        "eval",
        "configs.common",
    },
    "m3ddm_jax.benchmarks": {
        "m3ddm_jax.models",
        "m3ddm_jax.diffusion",
        "m3ddm_jax.flow",
        "m3ddm_jax.geometry",
        "m3ddm_jax.video",
        "m3ddm_jax.losses",
        "m3ddm_jax.parallel",
        "m3ddm_jax.measure",
        "m3ddm_jax.training",
        "m3ddm_jax.weights",
        "m3ddm_jax.pipelines",
        "m3ddm_jax.recipes",
        "configs",
    },
    "eval": {"m3ddm_jax.models", "m3ddm_jax.weights", "m3ddm_jax.flow", "m3ddm_jax.geometry", "m3ddm_jax.video"},
    "data": {"m3ddm_jax.cli", "m3ddm_jax.scenes", "m3ddm_jax.video"},
    "configs.common": {
        "data.masks",
        "data.pipeline",
        "m3ddm_jax.losses.outpainting",
        "m3ddm_jax.models.registry",
        "m3ddm_jax.pipelines.denoiser",
        "m3ddm_jax.training",
        "m3ddm_jax.weights.m3ddm",
    },
    "configs": {"configs.common"},
}
ENTRY_POINTS = {
    "m3ddm_jax.__main__",
    "m3ddm_jax.ablate",
    "m3ddm_jax.batch",
    "m3ddm_jax.train",
    "m3ddm_jax.outpaint",
    "m3ddm_jax.convert",
    "m3ddm_jax.demo",
    "m3ddm_jax.precompute",
    "m3ddm_jax.plan",
    "m3ddm_jax.bench",
    "eval.run",
}
# Entry points of a room that keep to the room's rule and still read flags.
FLAG_READERS = ENTRY_POINTS | {
    "m3ddm_jax.cli",
    "m3ddm_jax.method_flags",
    "m3ddm_jax.outpaint_flags",
    "data.prepare",
    "data.synthetic.__main__",
}


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TOPS = ("m3ddm_jax", "configs", "data", "eval")
MODULES = {module_name(path): path for top in TOPS for path in sorted((ROOT / top).rglob("*.py"))}


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def is_ours(module: str) -> bool:
    return any(inside(module, top) for top in (*TOPS, "tests"))


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """Full names of all modules that a file imports, also those imported inside functions."""
    is_package = MODULES[module].name == "__init__.py"
    return imports_in(MODULES[module], module if is_package else module.rpartition(".")[0])


def imports_in(path: pathlib.Path, package: str) -> frozenset[str]:
    """`imports_of` a file of a package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            submodules = {f"{base}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= submodules
            if len(submodules) < len(node.names):
                found.add(base)
    return frozenset(found)


def room_of(module: str) -> str | None:
    return next((room for room in ROOMS if inside(module, room)), None)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_only_what_the_table_allows(module):
    if module in ENTRY_POINTS or module == "m3ddm_jax":
        return
    room = room_of(module)
    assert room, f"{module} lies in no room of the table: {', '.join(ROOMS)}"
    allowed = ROOMS[room] | {room}
    if room != "configs":
        allowed |= {"m3ddm_jax.files"}
    if room not in ("data", "configs", "m3ddm_jax.files"):
        allowed |= {"m3ddm_jax.types", "m3ddm_jax.checked"}
    if room == "configs":
        allowed -= {"configs"}
    wrong = {name for name in imports_of(module) if is_ours(name) and not any(inside(name, a) for a in allowed)}
    assert not wrong, f"{module} imports {sorted(wrong)}; it may import {sorted(allowed)}"
    assert not (imports_of(module) & ENTRY_POINTS), f"{module} imports an entry point"


def test_there_are_no_circles():
    graph = {module: {name for name in imports_of(module) if name in MODULES and name != module} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "module",
    sorted(m for m in MODULES if any(inside(m, room) for room in ("data", "m3ddm_jax.video", "m3ddm_jax.files"))),
)
def test_data_video_and_files_are_free_of_jax(module):
    wrong = {n for n in imports_of(module) if any(inside(n, p) for p in ("jax", "flax", "optax", "orbax"))}
    assert not wrong, f"{module} imports {sorted(wrong)}"


def test_what_the_wheel_runs_needs_no_folder_of_the_checkout():
    """The commands of the wheel, the public names, and the methods, which are imported by their names."""
    commands = {f"m3ddm_jax.{name}" for name in ("batch", "convert", "demo", "outpaint")}
    methods = {row.target.partition(":")[0] for row in OUTPAINTERS.values()}
    waiting, reached = [*commands, *methods, *m3ddm_jax._PUBLIC.values()], set()
    while waiting:
        module = waiting.pop()
        if module in MODULES and module not in reached:
            reached.add(module)
            waiting += imports_of(module)
    assert len(reached) > 100
    assert not {name for name in reached if any(inside(name, top) for top in ("configs", "data", "eval"))}


def test_nothing_imports_the_command_outpaint():
    """Its import would put the module in the place of the function `m3ddm_jax.outpaint`."""
    paths = [*MODULES.values(), *sorted((ROOT / "tests").rglob("*.py"))]
    assert not [path for path in paths if "m3ddm_jax.outpaint" in imports_in(path, "")]


@pytest.mark.parametrize("module", sorted(m for m in MODULES if inside(m, "configs") and m != "configs.common"))
def test_configs_are_plain(module):
    wrong = {name for name in imports_of(module) if name not in ("configs.common", "ml_collections")}
    assert not wrong, f"{module} imports {sorted(wrong)}; configs import configs.common and ml_collections alone"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_entry_points_read_flags(module):
    text = MODULES[module].read_text()
    assert module in FLAG_READERS or ("absl.flags" not in text and "import flags" not in text and "app.run" not in text)


# Inside functions alone: benchmarks measure themselves against torch where it is installed, weights read its pickles.
NEED_TORCH = {
    "m3ddm_jax.benchmarks.flow",
    "m3ddm_jax.benchmarks.forward",
    "m3ddm_jax.benchmarks.generator",
    "m3ddm_jax.benchmarks.torch_e2fgvi",
    "m3ddm_jax.benchmarks.torch_m3ddm",
    "m3ddm_jax.weights.torch_files",
    "m3ddm_jax.weights.i3d",
}


def test_the_library_does_not_need_the_test_requirements():
    references = ("torch", "torchvision", "lpips", "diffusers", "skimage", "scipy", "pytest", "hypothesis")
    wrong = {
        module: sorted(name for name in imports_of(module) if any(inside(name, r) for r in references))
        for module in MODULES
        if module not in NEED_TORCH
    }
    assert not any(wrong.values()), {module: names for module, names in wrong.items() if names}


def test_no_circle_or_wrong_import_goes_unseen(tmp_path, monkeypatch):
    """The reader itself: relative imports, submodules and imports inside functions are all found."""
    file = tmp_path / "unet3d.py"
    file.write_text("from . import layers\nfrom ..diffusion import schedule\ndef f():\n    import m3ddm_jax.train\n")
    monkeypatch.setitem(MODULES, "m3ddm_jax.models.unet3d", file)
    monkeypatch.setitem(MODULES, "m3ddm_jax.models.layers", file)
    monkeypatch.setitem(MODULES, "m3ddm_jax.diffusion.schedule", file)
    imports_of.cache_clear()
    found = imports_of("m3ddm_jax.models.unet3d")
    imports_of.cache_clear()
    assert found == {"m3ddm_jax.models.layers", "m3ddm_jax.diffusion.schedule", "m3ddm_jax.train"}
