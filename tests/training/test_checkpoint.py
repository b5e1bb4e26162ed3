import contextlib
import re
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m3ddm_jax.parallel.mesh import make_mesh
from m3ddm_jax.training import checkpoint as checkpoint_module
from m3ddm_jax.training import checksums
from m3ddm_jax.training.checkpoint import Checkpoints
from m3ddm_jax.training.optim import make_optimizer
from m3ddm_jax.training.state import abstract_state, init_state

FIXED = {"model": {"kind": "m3ddm", "num_heads": 2}, "prediction": "epsilon"}
CONFIG = {"train": {"steps": 4, "buckets": ((32, 32),)}}


@pytest.fixture(scope="module")
def optimizer():
    return make_optimizer(1e-3, warmup_steps=1, weight_decay=0.1, clip_norm=1.0)


def like(optimizer, mesh, width=128):
    def init(key):
        return {"params": {"w": jax.random.normal(key, (64, width)), "b": jnp.zeros(3)}}

    rng = jax.random.key(1)
    return init, rng, abstract_state(init, optimizer, rng, mesh)


def fresh(optimizer, mesh):
    init, rng, abstract = like(optimizer, mesh)
    return init_state(init, optimizer, rng, abstract)


def opened(folder, mesh, fixed=FIXED, keep=2, on_save=lambda: None):
    return Checkpoints(folder, keep=keep, fixed=fixed, config=CONFIG, mesh=mesh, on_save=on_save)


def assert_same(a, b):
    a, b = (jax.tree.map(lambda x: jax.random.key_data(x) if x.dtype == b.rng.dtype else x, t) for t in (a, b))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("target", [{"data": 2, "fsdp": 4}, {"data": 8, "fsdp": 1}, {"devices": jax.devices()[:1]}])
def test_what_eight_devices_saved_comes_back_on_another_mesh(tmp_path, optimizer, target):
    mesh, other = make_mesh(data=2, fsdp=4), make_mesh(**target)
    state = fresh(optimizer, mesh)
    checkpoints = opened(tmp_path, mesh)
    assert checkpoints.latest_step() is None
    checkpoints.save(state, 3, examples_seen=24)
    checkpoints.close()
    abstract = like(optimizer, other)[2]
    restored, examples_seen = opened(tmp_path, other).restore(abstract)
    assert examples_seen == 24
    assert_same(restored, state)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, abstract)


def test_hyper_parameters_that_are_gone_do_not_keep_a_run_from_going_on(tmp_path, optimizer):
    mesh = make_mesh(devices=jax.devices()[:1])
    kept = {"model": {"kind": "globalpaint", "est": "1d"}}
    checkpoints = opened(tmp_path, mesh, fixed={"model": kept["model"] | {"est_parallel": False}})
    checkpoints.save(fresh(optimizer, mesh), 1, examples_seen=8)
    checkpoints.close()
    assert opened(tmp_path, mesh, fixed=kept).restore(like(optimizer, mesh)[2])[1] == 8


def test_a_state_given_away_after_saving_is_saved_as_it_was(tmp_path, optimizer):
    """The train step donates its state while the checkpoint is still being written."""
    mesh = make_mesh(data=2, fsdp=4)
    state = fresh(optimizer, mesh)
    before = np.asarray(state.params["w"])
    checkpoints = opened(tmp_path, mesh)
    checkpoints.save(state, 1, examples_seen=8)
    overwrite = jax.jit(lambda s: s.replace(params=jax.tree.map(lambda x: x * 0, s.params)), donate_argnums=0)
    overwrite(state)
    checkpoints.close()
    restored, _ = opened(tmp_path, mesh).restore(like(optimizer, mesh)[2])
    np.testing.assert_array_equal(restored.params["w"], before)


def test_old_checkpoints_go_and_a_step_is_saved_once(tmp_path, optimizer, capsys):
    mesh = make_mesh(devices=jax.devices()[:1])
    state = fresh(optimizer, mesh)
    saved = []
    checkpoints = opened(tmp_path, mesh, keep=2, on_save=lambda: saved.append(checkpoints.latest_step()))
    for step in (1, 2, 3, 3):
        checkpoints.save(state, step, examples_seen=step)
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
    assert saved == [1, 2, 3]
    said = [re.sub(r"[\d.]+ s$", "so many s", line) for line in capsys.readouterr().out.splitlines()]
    assert said == [f"checkpoint {step} written in so many s" for step in (1, 2, 3)]


@pytest.mark.parametrize(
    "fixed, width, message",
    [
        (FIXED | {"model": {"kind": "m3ddm", "num_heads": 4}}, 128, "model.num_heads is 2 there and 4 here"),
        (FIXED | {"prediction": "x0"}, 128, "prediction is epsilon there and x0 here"),
        (FIXED, 256, r"ema_params/w is \[64, 128\] there and \[64, 256\] here"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_in_one_line(tmp_path, optimizer, fixed, width, message):
    mesh = make_mesh(devices=jax.devices()[:1])
    checkpoints = opened(tmp_path, mesh)
    checkpoints.save(fresh(optimizer, mesh), 5, examples_seen=1)
    checkpoints.close()
    with pytest.raises(ValueError, match=message) as raised:
        opened(tmp_path, mesh, fixed).restore(like(optimizer, mesh, width)[2])
    assert "checkpoint 5 in" in str(raised.value) and "\n" not in str(raised.value)


def test_another_optimizer_is_refused(tmp_path, optimizer):
    mesh = make_mesh(devices=jax.devices()[:1])
    checkpoints = opened(tmp_path, mesh)
    checkpoints.save(fresh(optimizer, mesh), 5, examples_seen=1)
    checkpoints.close()
    with pytest.raises(ValueError, match="absent here"):
        opened(tmp_path, mesh).restore(like(optax.sgd(0.1), mesh)[2])


@pytest.fixture
def two(tmp_path, optimizer):
    """A folder with checkpoints 1 and 2, of different states, and what opens and restores it."""
    mesh = make_mesh(devices=jax.devices()[:1])
    state = fresh(optimizer, mesh)
    checkpoints = opened(tmp_path / "checkpoints", mesh)
    for step in (1, 2):
        checkpoints.save(state.replace(step=jnp.int32(step)), step, examples_seen=10 * step)
    checkpoints.close()

    def restore():
        checkpoints = opened(tmp_path / "checkpoints", mesh)
        try:
            restored, seen = checkpoints.restore(like(optimizer, mesh)[2])
        finally:
            checkpoints.close()
        assert_same(restored, state.replace(step=restored.step))
        assert seen == 10 * int(restored.step)
        return int(restored.step)

    return tmp_path / "checkpoints", restore


def test_no_flipped_bit_is_restored_silently(two, capsys):
    folder, restore = two
    rng, whole = np.random.default_rng(0), folder.parent / "whole"
    shutil.copytree(folder, whole)
    assert restore() == 2
    files = sorted(path for path in (folder / "2").rglob("*") if path.is_file() and path.parent != folder / "2")
    flips = [files[index] for index in rng.integers(len(files), size=8)]
    flips += [max(files, key=lambda path: path.stat().st_size)] * 4
    for path in flips:
        data = bytearray(path.read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        capsys.readouterr()
        assert restore() == 1
        assert "checkpoint 2 is damaged" in capsys.readouterr().err
        assert len(list((folder.parent / "checkpoints.damaged").iterdir())) == 1
        for part in (folder, folder.parent / "checkpoints.damaged"):
            shutil.rmtree(part)
        shutil.copytree(whole, folder)


def test_a_checkpoint_without_checksums_is_restored_with_a_line(two, capsys):
    folder, restore = two
    (folder / "2" / "checksums.json").unlink()
    assert restore() == 2
    assert capsys.readouterr().err == "checkpoint 2 has no checksums: it is restored unchecked\n"


def test_checksums_of_earlier_versions_are_still_checked(two, monkeypatch, capsys):
    folder, restore = two
    monkeypatch.setattr(checksums, "_KIND", "adler32")
    checksums.write_checksums(folder / "2")
    monkeypatch.undo()
    assert "adler32" in (folder / "2" / "checksums.json").read_text()
    assert restore() == 2 and capsys.readouterr().err == ""
    largest = max((folder / "2" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"\0")
    assert restore() == 1 and "checkpoint 2 is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("size", [1, 4095, 4096, 3 * 4096 + 5, (1 << 20) + 4096 + 3])
def test_page_sums_change_with_every_change_of_a_page(size):
    rng = np.random.default_rng(size)
    content = rng.integers(256, size=size, dtype=np.uint8)
    whole = checksums.page_sums(memoryview(content))
    for start in rng.integers(size, size=20):
        page = content[start // 4096 * 4096 :][:4096]
        before, flipped = page.copy(), rng.integers(len(page))
        page[flipped] ^= 1 << rng.integers(8)
        for changed in (page.copy(), np.roll(before, 8), before ^ 255, np.zeros_like(page)):
            page[:] = changed
            same = checksums.page_sums(memoryview(content)) == whole
            assert same == np.array_equal(changed, before)
        page[:] = before
    pages = content[: size // 4096 * 4096].reshape(-1, 4096)
    if len(pages) > 1:
        pages[[0, 1]] = pages[[1, 0]]
        assert checksums.page_sums(memoryview(content)) != whole, "pages that change places"


def test_an_empty_checkpoint_and_one_without_its_files_are_passed_over(two, capsys):
    folder, restore = two
    (folder / "18").mkdir()
    shutil.rmtree(folder / "2" / "state")
    assert restore() == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "18" in lines[0] and "checkpoint 2 is damaged" in lines[1]
    assert restore() == 1


def test_where_all_are_damaged_none_is_moved(two):
    folder, restore = two
    for step in "12":
        (folder / step / "checksums.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="no checkpoint in .* can be restored: 2: .*; 1: ") as error:
        restore()
    assert "\n" not in str(error.value) and {"1", "2"} <= {path.name for path in folder.iterdir()}


def test_checksums_cost_little_and_come_in_the_background(tmp_path):
    folder = tmp_path / "step"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "a").write_bytes(bytes(100 << 20))
    start = time.perf_counter()
    checksums.write_checksums(folder)
    assert time.perf_counter() - start < 2, "50 MB a second is far below what a disk writes"
    assert checksums.find_damage(folder) is None


def test_a_disk_that_cannot_be_written_is_one_error(tmp_path, optimizer, monkeypatch, capfd):
    """What background threads meet is raised where they are waited for, and not told as traces before."""
    mesh = make_mesh(devices=jax.devices()[:1])
    checkpoints = opened(tmp_path / "checkpoints", mesh)

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "write_checksums", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(fresh(optimizer, mesh), 1, examples_seen=1)
        checkpoints.wait()
    with contextlib.suppress(OSError):
        checkpoints.close()
    assert "Traceback" not in capfd.readouterr().err
