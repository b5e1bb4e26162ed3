"""The command: what ends it with one line."""

import socket
import sys

import pytest


@pytest.fixture
def busy_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_busy_port_is_one_line(run_module, busy_port):
    done = run_module("m3ddm_jax.demo", f"--port={busy_port}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and f"--port {busy_port}" in done.stderr


def test_without_gradio_one_line_names_the_command(run_module, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = run_module("m3ddm_jax.demo", "--port=0")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and 'pip install "m3ddm-jax[demo]"' in done.stderr
