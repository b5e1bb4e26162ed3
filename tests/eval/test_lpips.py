import functools
import json
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval import lpips
from m3ddm_jax.models.lpips import LPIPS

FRAMES, HEIGHT, WIDTH = 5, 35, 48


def clip(seed, frames=FRAMES):
    return np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def left_strip(width):
    mask = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    mask[:, :width] = 1
    return mask


@pytest.fixture(scope="module")
def model():
    module, images = LPIPS("alex"), jnp.zeros((1, 32, 32, 3))
    return module, jax.jit(module.init)(jax.random.key(0), images, images)


@pytest.fixture(scope="module")
def meter(model):
    """On all eight devices, eight frames at a time."""
    return lpips.FrameLPIPS(*model)


def test_whole_frames_and_regions(model, meter):
    module, variables = model
    truth, output = clip(0), clip(1)
    a, b = (frames / np.float32(127.5) - 1 for frames in (truth, output))
    masks = np.zeros((FRAMES, HEIGHT, WIDTH, 1), np.uint8)
    for frame in range(1, FRAMES):
        masks[frame, :, : 7 * frame] = 1
    whole, region = meter(truth, output, masks)
    assert whole.dtype == region.dtype == np.float64
    # The same network; another batch may add up in another order.
    np.testing.assert_allclose(whole, jax.jit(module.apply)(variables, a, b), rtol=1e-5)
    maps = np.asarray(jax.jit(lambda a, b: module.apply(variables, a, b, method="distance_map"))(a, b))
    expected = [maps[frame][masks[frame, ..., 0] == 1].mean() for frame in range(1, FRAMES)]
    np.testing.assert_allclose(region[1:], expected, rtol=1e-5)
    assert np.isnan(region[0])


def test_one_device_gives_what_eight_give(model, meter):
    truth, output, mask = clip(2, frames=9), clip(3, frames=9), left_strip(20)
    alone = lpips.FrameLPIPS(*model, batch_size=4, devices=jax.devices()[:1])
    for eight, one in zip(meter(truth, output, mask), alone(truth, output, mask), strict=True):
        assert len(eight) == 9
        np.testing.assert_allclose(eight, one, rtol=1e-5)


def test_chunks_of_any_length_share_one_program(model, monkeypatch):
    traces = []
    measure = lpips._measure
    monkeypatch.setattr(lpips, "_measure", lambda *arguments: traces.append(1) or measure(*arguments))
    meter = lpips.FrameLPIPS(*model, batch_size=3, devices=jax.devices()[:1])
    truth, output, mask = clip(4), clip(5), left_strip(20)
    whole = meter(truth, output, mask)[0]
    pieces = [meter(truth[i:j], output[i:j], mask)[0] for i, j in ((0, 1), (1, 5))]
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-5)
    assert len(traces) == 1


def test_accelerators_compute_in_full_float32(model):
    module, variables = model
    program = str(jax.make_jaxpr(functools.partial(lpips._measure, module))(variables, *2 * [clip(0)], clip(0) > 0))
    assert program.count("conv_general_dilated[") == 5
    assert "Precision.HIGHEST" in program and "precision=None" not in program


def test_identical_frames_are_at_zero(meter):
    truth = clip(6)
    for values in meter(truth, truth.copy(), left_strip(20)):
        assert np.all(values == 0)


def test_known_pixels_that_are_right_help(meter):
    truth, noise, mask = clip(7), clip(8), left_strip(20)
    pasted, unpasted = meter(truth, np.where(mask, noise, truth), mask), meter(truth, noise, mask)
    assert np.all(pasted[0] < 0.9 * unpasted[0])
    assert np.all(pasted[0] < pasted[1])


def test_reference_values(goldens):
    """The `lpips` package on the same images: its distance, and the mean of its map where the region is everything."""
    folder = goldens / "metrics"
    recipe, expected = runpy.run_path(str(folder / "recipe.py")), np.load(folder / "lpips/outputs.npz")
    heads = np.load(folder / "lpips/lin_v0.1.npz")
    params = {f"lin{i}": {"kernel": heads[f"alex/lin{i}.model.1.weight"][0, :, 0]} for i in range(5)}
    for row in json.loads((folder / "lpips/name_map.json").read_text())["alex"]:
        _, layer, leaf = row["name"].split("/")
        params.setdefault(layer.replace(".", "_"), {})[leaf] = recipe["weight"](row["name"], row["shape"])
    truth, output = recipe["image_pair"]("lpips/4x64x64", 4, 64, 64)
    whole, region = lpips.FrameLPIPS(LPIPS("alex"), {"params": params})(truth, output, np.ones((64, 64, 1)))
    np.testing.assert_allclose(whole, expected["alex/4x64x64/distance"], rtol=1e-4)
    np.testing.assert_allclose(region, expected["alex/4x64x64/spatial_mean"], rtol=1e-4)


@pytest.mark.parametrize(
    ("truth", "output", "message"),
    [
        (clip(0), clip(0)[:2], "differ in shape"),
        (clip(0)[:, :30], clip(0)[:, :30], "alex needs 31 pixels or more a side, images are 48x30"),
        (clip(0), clip(0) / 255, "output must be uint8"),
    ],
)
def test_refuses_what_does_not_fit(meter, truth, output, message):
    with pytest.raises(ValueError, match=message):
        meter(truth, output, np.ones((*truth.shape[1:3], 1)))


def test_broken_weights_are_told_from_a_distance(model):
    module, variables = model
    broken = jax.tree.map(lambda x: x * jnp.nan, variables)
    with pytest.raises(ValueError, match="LPIPS of frame 0 is nan: the weights hold nan or inf"):
        lpips.FrameLPIPS(module, broken)(clip(9, 1), clip(10, 1), left_strip(20))
