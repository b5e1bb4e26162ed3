"""The command batch on a Ray cluster of two nodes, one of which is lost."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from m3ddm_jax.video import FrameSource

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def test_a_lost_node_loses_nothing_and_doubles_nothing(clips, tmp_path, monkeypatch):
    """All clips are finished, each once, when a node is removed after the third."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs requirements-ray.txt")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    options = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=options)
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        names = [os.path.relpath(path, ROOT) for path in (clips, tmp_path)]
        command = [sys.executable, "-m", "m3ddm_jax.batch", *names, "--aspect=16:9", "--method=blur"]
        process = subprocess.Popen(
            [*command, f"--ray={cluster.address}"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        lines = tmp_path / "report.jsonl"
        while process.poll() is None and not (lines.exists() and lines.read_text().count("\n") >= 3):
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()
        cluster.remove_node(node, allow_graceful=False)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out == f"{names[1]}: 12 done, 0 skipped, 0 failed of 12 videos, report.jsonl\n"
    finally:
        cluster.shutdown()
    results = [json.loads(line) for line in lines.read_text().splitlines()]
    assert sorted(os.path.basename(result["video"]) for result in results) == sorted(os.listdir(clips))
    assert {result["status"] for result in results} == {"done"}
    assert all(len(FrameSource(tmp_path / path.name)) == 24 for path in clips.iterdir())
    assert sorted(name for name in os.listdir(tmp_path) if not name.endswith(".part")) == sorted(
        [*os.listdir(clips), "report.jsonl"]
    )
