import jax
import pytest

from m3ddm_jax.benchmarks import transformer
from m3ddm_jax.models.unet3d import M3DDMUNet

PARTS = ("self", "cross", "frames", "transformer")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(transformer, "CLIPS", {"tiny": (2, 4, 4)})
    monkeypatch.setattr(transformer, "_CONTEXT", 5)
    return M3DDMUNet(
        block_out_channels=(16,), num_heads=2, norm_num_groups=4, cross_attention_dim=8, frame_embedding_dim=8
    )


def test_every_part_is_compiled_in_every_form(small):
    rows = transformer.measure(jax.devices(), small)
    assert list(rows) == [f"tiny, {part}, {form}" for form in transformer.FORMS for part in PARTS]
    assert all(row["GiB moved"] > 0 and row["compile seconds"] > 0 for row in rows.values())
    whole, part = (rows[f"tiny, {name}, auto"]["MiB between"] for name in ("transformer", "self"))
    assert whole > part


def test_what_does_not_fit_is_a_row(small, monkeypatch):
    class Refused:
        def lower(self, *_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large\nand more")

    monkeypatch.setattr(transformer.jax, "jit", lambda function: Refused())
    rows = transformer.measure(jax.devices(), small)
    assert {row["MiB between"] for row in rows.values()} == {"does not compile: RESOURCE_EXHAUSTED: too large"}
