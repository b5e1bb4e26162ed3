"""docs/colab.ipynb runs from top to bottom, on CPU and on less: fewer frames, fewer updates, a network of one level."""

import os
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks are read by nbformat")
nbclient = pytest.importorskip("nbclient", reason="notebooks are executed by nbclient")
pytest.importorskip("ipykernel", reason="notebooks are executed by ipykernel")

ROOT = Path(__file__).resolve().parents[1]
ONE_LEVEL = "--config.model.block_out_channels='(32,)' --config.model.attention_levels='(False,)'"
LESS = {
    "FRAMES, SIDE = 48, 512": "FRAMES, SIDE = 3, 64",
    "STEPS = 300": "STEPS = 1",
    "--config.train.steps={STEPS}": f"--config.train.steps={{STEPS}} --config.train.batch_size=1 {ONE_LEVEL}",
}


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    for name in ("configs", "data", "m3ddm_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    flags = os.environ.get("XLA_FLAGS", "")
    monkeypatch.setenv("XLA_FLAGS", flags.replace("device_count=8", "device_count=1"))
    notebook = nbformat.read(ROOT / "docs" / "colab.ipynb", as_version=4)
    nbformat.validate(notebook)
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", ())]
    for text, less in LESS.items():
        (cell,) = [cell for cell in notebook.cells if text in cell.source]
        cell.source = cell.source.replace(text, less)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs/tiny/model/weights.safetensors").is_file()
    assert (tmp_path / "trained.mp4").stat().st_size and (tmp_path / "wide.mp4").stat().st_size
