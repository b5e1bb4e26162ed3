import os
import subprocess
import sys

import jax
import pytest

from m3ddm_jax.parallel import compiling


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    level = jax.config.jax_optimization_level
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")
    yield
    jax.config.update("jax_optimization_level", level)


def test_flags_of_the_environment_win(monkeypatch):
    flag, *others = compiling._GPU
    monkeypatch.setenv("XLA_FLAGS", flag.replace("true", "false"))
    compiling.set_up("O2", "gpu")
    assert os.environ["XLA_FLAGS"].split() == [*others, flag.replace("true", "false")]
    assert jax.config.jax_optimization_level == "O2"
    compiling.set_up(preset="tpu")
    assert os.environ["LIBTPU_INIT_ARGS"].split() == list(compiling._TPU)
    compiling.set_up()
    assert jax.config.jax_optimization_level == compiling.DEFAULT_LEVEL


def test_xla_knows_the_flags_for_gpus():
    """One that it does not know ends the process."""
    env = {**os.environ, "XLA_FLAGS": " ".join(compiling._GPU), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; print(jax.device_count())"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "1\n", done.stderr


def test_libtpu_knows_the_flags_for_tpus():
    pytest.importorskip("libtpu", reason="libtpu is not installed (requirements-tpu.txt)")
    env = {**os.environ, "LIBTPU_INIT_ARGS": " ".join(compiling._TPU)}
    code = "from m3ddm_jax.parallel.topology import topology_devices; print(len(topology_devices('v5e:2x2')))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "4\n", done.stderr
