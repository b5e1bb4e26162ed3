import json
import pathlib
import runpy
import subprocess
import sys

import jax
import pytest

from configs import m3ddm, m3ddm_tiny
from m3ddm_jax import plan as planner
from m3ddm_jax.benchmarks import plan as planning
from m3ddm_jax.benchmarks.sweep import overridden, sweep
from m3ddm_jax.measure.chips import Chip
from m3ddm_jax.models.remat import REMAT
from m3ddm_jax.plan import make_plan
from m3ddm_jax.recipes import RECIPES
from m3ddm_jax.training.state import TrainState

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def levels():
    level = jax.config.jax_optimization_level
    yield
    jax.config.update("jax_optimization_level", level)


def make_config(**mesh):
    config = m3ddm_tiny.get_config()
    config.mesh.update(mesh)
    return config


def test_a_plan_of_cpu_devices_is_made_once(tmp_path, monkeypatch):
    config = make_config(data=2, fsdp=4)
    config.model.update(block_out_channels=(32,), attention_levels=(False,))  # two levels take twice as long
    made = make_plan(config, "cpu:8", what="sample", cache=str(tmp_path))
    assert made["devices"] == "8 x cpu" and made["mesh"] == "data=2 x fsdp=4 x tensor=1 x context=1"
    assert made["fits"].startswith("not known") and made["GiB together"] > made["GiB of parameters"] > 0
    assert made["TFLOP"] == pytest.approx(8 * made["TFLOP a device"]) and made["compile seconds"] > 0
    # What a sampler splits over fsdp it must gather.
    assert any(name.startswith("all-gather f32") and row["times"] for name, row in made["collectives"].items())
    monkeypatch.setattr(planning, "plan", None)
    assert make_plan(config, "cpu:8", what="sample", cache=str(tmp_path)) == json.loads(json.dumps(made))
    with pytest.raises(TypeError):
        make_plan(config, "cpu:8", what="sample", level="O0", cache=str(tmp_path))


@pytest.fixture(scope="module")
def program():
    return planning.make_program(make_config(data=4, fsdp=2), jax.devices(), "train")


def test_a_state_is_as_large_on_a_device_as_its_shardings_say(program):
    state, batch, _ = program.arguments
    assert isinstance(state, TrainState)
    assert {name: leaf.shape[0] for name, leaf in batch.items()} == dict.fromkeys(batch, 8)
    sizes = planning.sizes(program)
    assert sizes["GiB of parameters"] * 2**30 < 4 * sizes["parameters"]
    assert sizes["GiB of averaged parameters"] == sizes["GiB of parameters"]
    assert sizes["GiB of optimizers"] == pytest.approx(2 * sizes["GiB of parameters"], rel=1e-4)


class Refused:
    """What a TPU's compiler says where a program is too large."""

    def __init__(self, message):
        self._message = message

    def compile(self):
        raise jax.errors.JaxRuntimeError(self._message)


def test_what_does_not_fit_says_by_how_much_and_what_would(program, monkeypatch):
    monkeypatch.setattr(planning, "operations", lambda *_: {})
    config = make_config(data=4, fsdp=2)
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 6.5M of 5M hbm. Exceeded by 1.5M.\nMore."
    with pytest.raises(ValueError, match=r"does not fit: 0.01 GiB of 0.00 .* estimated to: mesh.data=2 mesh.fsdp=4"):
        planning.plan(config, program, Refused(said))
    with pytest.raises(ValueError, match="no mesh and no accumulation are estimated to"):
        planning.plan(config, program, Refused(said.replace("of 5M", "of 1K")))
    with pytest.raises(ValueError, match="the compiler failed: something else"):
        planning.plan(config, program, Refused("something else\nand more"))


def test_what_lives_between_alone_is_too_large():
    """A TPU's compiler then names it without the arguments."""
    said = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (6.5M) exceeds "
    assert planning._excess(said + "available HBM (5M).", 2**20) == (7.5 * 2**20, 5 * 2**20)
    assert planning._excess("Used 6.5M of 5M hbm", 2**20) == (6.5 * 2**20, 5 * 2**20)


def test_depth_is_of_the_network_alone():
    shallow = planning.with_depth(m3ddm.get_config(), 1)
    assert shallow.model.layers_per_block == 1 and shallow.model.block_out_channels == (320, 640, 1280, 1280)
    config = make_config()
    config.model.kind = "e2fgvi"
    with pytest.raises(ValueError, match="m3ddm and globalpaint have a depth"):
        planning.with_depth(config, 1)


def test_a_config_needs_no_files_to_be_planned():
    """This one names an autoencoder that is not here, as it names clips."""
    config = m3ddm_tiny.get_config("nowhere")
    config.data.sources = ({"kind": "shards", "path": "nowhere", "weight": 1.0},)
    _, batch, frozen = planning.make_program(config, jax.devices(), "train").arguments
    assert batch["video"].shape == (8, 2, 32, 32, 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(frozen["autoencoder"])) > 8e7  # Stable Diffusion's
    config.data.sources = ({"kind": "latents", "path": "nowhere", "weight": 1.0},)
    _, batch, _ = planning.make_program(config, jax.devices(), "train").arguments
    assert batch["latents_mean"].shape == (8, 2, 4, 4, 4) and batch["latents_mean"].dtype == "float16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topology=nowhere"], "topology "),
        (["--topology=cpu:8", "--sweep", "--what=sample"], "--sweep is of the training step"),
    ],
)
def test_command_refuses_bad_input_with_one_line(run_module, monkeypatch, options, message):
    monkeypatch.chdir(ROOT)
    done = run_module("m3ddm_jax.plan", "--config=configs/m3ddm_tiny.py", *options)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_process_of_its_own_refuses_bad_input_with_one_line():
    command = [sys.executable, "-m", "m3ddm_jax.plan", "--config=configs/m3ddm_tiny.py", "--topology=cpu:6"]
    done = subprocess.run([*command, "--config.mesh.fsdp=4"], cwd=ROOT, capture_output=True, text=True)
    message = "mesh data=-1 x fsdp=4 x tensor=1 x context=1 does not fill 6"
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.fixture
def toy(monkeypatch):
    """The config of a recipe whose step is traced in no time."""
    recipe = runpy.run_path(str(ROOT / "tests" / "parallel" / "toy_recipe.py"))["ToyRecipe"]
    monkeypatch.setitem(RECIPES, "toy", recipe)
    config = make_config()
    config.recipe = "toy"
    return config


def test_a_plan_that_does_not_fit_is_refused(toy, monkeypatch):
    monkeypatch.setitem(planning.CHIPS, "cpu", Chip(1e12, 2**16, 1e9))
    with pytest.raises(ValueError, match="does not fit: 0.* GiB of 0.00 on a device"):
        make_plan(toy, "cpu:8", what="train")


def estimates(ranking, **parts):
    return [row for name, row in ranking.items() if all(f"{part}={value}" in name for part, value in parts.items())]


def test_a_sweep_knows_every_mesh_that_takes_the_batch(toy):
    ranking = sweep(toy, jax.devices())
    meshes = {name.partition(" train")[0] for name in ranking}
    # Two frames, of which a device has one or both; nothing is wide enough for `tensor`.
    assert {name.rpartition("mesh.context=")[2] for name in meshes} == {"1", "2"} and len(meshes) == 4 + 3
    assert all("mesh.tensor=1" in name for name in meshes)
    assert {name.rpartition("model.remat=")[2] for name in ranking} == set(REMAT)
    # A device works at the frames of one clip at a time.
    assert all("train.accumulate=2 " in name for name in ranking if "mesh.context=2" in name)
    assert [row["seconds"] for row in ranking.values()] == sorted(row["seconds"] for row in ranking.values())
    best = overridden(toy, next(iter(ranking)))
    assert best.mesh.keys() == toy.mesh.keys() and best.mesh != toy.mesh
    toy.train.batch_size = 3
    with pytest.raises(ValueError, match=r"no mesh of 8 device\(s\) takes a batch of 3 clips"):
        sweep(toy, jax.devices())


def test_a_sweep_weighs_memory_and_exchanges(toy):
    ranking = sweep(toy, jax.devices())
    whole, split = (estimates(ranking, data=data, fsdp=fsdp, remat="none")[0] for data, fsdp in ((8, 1), (1, 8)))
    assert split["GiB of the state"] < whole["GiB of the state"] / 4
    assert split["GiB exchanged"] > whole["GiB exchanged"]  # parameters are gathered, twice
    kept, again = (estimates(ranking, data=8, remat=remat)[0] for remat in ("none", "blocks"))
    assert again["GiB between"] < 0.8 * kept["GiB between"]
    assert estimates(ranking, data=4, context=2, remat="none")[0]["GiB between"] < kept["GiB between"]


def test_a_sweep_compiles_the_best_that_fit(toy, monkeypatch):
    ranking = sweep(toy, jax.devices())
    needed = sorted(row["GiB of the state"] + row["GiB between"] for row in ranking.values())
    monkeypatch.setitem(planning.CHIPS, "cpu", Chip(1e12, int(needed[len(needed) // 2] * 2**30), 1e9))
    compiled = []

    def make_plan(config, topology, **options):
        compiled.append((config.mesh.to_dict(), config.model.remat))
        if len(compiled) == 1:
            raise ValueError("the program does not fit")
        return {"fits": "yes"}

    monkeypatch.setattr(planner, "make_plan", make_plan)
    made = planner.make_sweep(toy, "cpu:8", what="train", slices=1, level="O1", cache="")
    assert [plan["fits"] for plan in made["plans"].values()] == ["no: the program does not fit", "yes"]
    assert len(set(map(str, compiled))) == 2
    fits = [row["GiB too many"] == 0 for row in made["ranking"].values()]
    assert fits == sorted(fits, reverse=True) and len(set(fits)) == 2


def test_a_training_step_compiles_for_a_pod_that_is_not_there():
    pytest.importorskip("libtpu", reason="libtpu is not installed (requirements-tpu.txt)")
    config = make_config(fsdp=4)
    config.train.batch_size = 16
    config.model.dtype = "bfloat16"
    made = make_plan(config, "v5e:4x4")
    assert made["devices"] == "16 x TPU v5 lite" and made["fits"].startswith("yes")
    # Gradients of weights, the largest of what is reduced, are float32.
    kinds = ("all-reduce", "reduce-scatter")
    reduced = {name: row["MiB"] for name, row in made["collectives"].items() if name.startswith(kinds)}
    assert " f32 " in max(reduced, key=reduced.get)
