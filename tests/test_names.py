"""No module, class, function or parameter carries a name that was given up. For as long as the renaming lasts."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = [path for top in ("m3ddm_jax", "data", "eval", "configs") for path in sorted((ROOT / top).rglob("*.py"))]

OLD = {
    "products",
    "walk",
    "latent_spool",
    "hierarchy",
    "lending",
    "visits",
    "kept",
    "live",
    "command",
    "DRAWN",
    "Parts",
    "again",
    "beside",
    "like",
    "told_as",
    "remember_programs",
    "published_sampling",
    "style_discriminator_from_state_dict",
    "VideoBTHWC",
    "MaskBTHW1",
    "est_parallel",
}
# Name -> the one module that defines it.
ONE_MEANING = {
    "Conditions": "m3ddm_jax/pipelines/sampler.py",
    "plan_windows": "m3ddm_jax/pipelines/window_schedule.py",
    "Window": "m3ddm_jax/pipelines/window_schedule.py",
    "propagate": "m3ddm_jax/pipelines/propagation.py",
    "Program": "m3ddm_jax/measure/program.py",
    "check_clips": "m3ddm_jax/recipes/base.py",
    "Settings": None,
}


def names_of(tree):
    """Names of classes, functions, parameters and fields, and of what a module binds at its top."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        if isinstance(node, ast.arg):
            yield node.arg
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def found_in(path):
    names = set(names_of(ast.parse(path.read_text()))) | {path.stem}
    return sorted(names & OLD)


@pytest.mark.parametrize("top", ["m3ddm_jax", "data", "eval", "configs"])
def test_old_names_are_gone(top):
    found = {str(path.relative_to(ROOT)): found_in(path) for path in FILES if path.relative_to(ROOT).parts[0] == top}
    assert not {path: names for path, names in found.items() if names}


def test_old_names_would_be_found(tmp_path):
    (tmp_path / "live.py").write_text("def f(x, *, like): ...\nclass Parts:\n    kept: int\nDRAWN = 1\n")
    assert found_in(tmp_path / "live.py") == ["DRAWN", "Parts", "kept", "like", "live"]


@pytest.mark.parametrize("name", ONE_MEANING)
def test_a_name_has_one_meaning(name):
    defined = [
        path.relative_to(ROOT).as_posix()
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
    ]
    assert defined == [ONE_MEANING[name]] * bool(ONE_MEANING[name])
