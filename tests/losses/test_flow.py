import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from m3ddm_jax.flow.warping import sample_bilinear
from m3ddm_jax.losses import flow as losses

# float32 sums in another order.
RTOL = 1e-5


@pytest.fixture(scope="module")
def golden(goldens):
    folder = goldens / "isvi/lafc_losses"
    inputs = {name: rearrange(x, "b c h w -> b h w c") for name, x in np.load(folder / "inputs.npz").items()}
    return inputs, np.load(folder / "outputs.npz")


def test_smoothness_is_the_published_one(golden):
    inputs, expected = golden
    first, second = jax.jit(losses.smoothness)(inputs["flow_comp"], inputs["mask"])
    np.testing.assert_allclose(first, expected["smooth1"], rtol=RTOL)
    np.testing.assert_allclose(second, expected["smooth2"], rtol=RTOL)


def read_at_corners(images, rows, columns):
    """As the published code reads images, with corners of pixels for their centres."""
    places = (x * side / (side - 1) - 0.5 for x, side in zip((rows, columns), images.shape[1:3], strict=True))
    return sample_bilinear(images, *places)


def test_ternary_is_the_published_one_but_for_how_images_are_read(golden, monkeypatch):
    inputs, expected = golden
    arguments = [inputs[name] for name in ("flow_comp", "flow_gt", "mask", "current", "shift")]
    assert abs(jax.jit(losses.ternary)(*arguments) - expected["ternary"]) > 1e-3
    monkeypatch.setattr(losses, "sample_bilinear", read_at_corners)
    published = jax.jit(lambda *arguments: losses.ternary(*arguments))
    np.testing.assert_allclose(published(*arguments), expected["ternary"], rtol=RTOL)
    census = rearrange(expected["ternary_transform"], "b c h w -> b h w c")
    # Of gray levels up to 255 the last bit is 1.5e-5.
    np.testing.assert_allclose(jax.jit(losses._census)(inputs["current"]), census, atol=1e-4)
    warped = rearrange(expected["warped_gt"], "b c h w -> b h w c")
    found = jax.jit(lambda *arguments: losses._brought_back(*arguments))(inputs["shift"], inputs["flow_gt"])
    np.testing.assert_allclose(found, warped, atol=1e-5)


def test_terms_of_a_flow_that_is_off_by_constants():
    """Half of the columns masked, off by 3 there and by 1 elsewhere; coarse flows off by a half."""
    mask = np.zeros((2, 8, 16, 1), np.float32)
    mask[:, :, :8] = 1
    truth = np.broadcast_to(np.float32([4, -8]), (2, 8, 16, 2))
    quarter, half = (
        np.broadcast_to(truth[:, ::step, ::step] / step + 0.5, (2, 8 // step, 16 // step, 2)) for step in (4, 2)
    )
    terms = jax.jit(losses.completion_terms)((truth + 1 + 2 * mask, quarter, half), truth, mask)
    assert set(terms) == {"hole", "valid", "smooth_first", "smooth_second", "quarter", "half"}
    assert {name: float(terms[name]) for name in ("hole", "valid", "quarter", "half")} == {
        "hole": 3,
        "valid": 1,
        "quarter": 0.5,
        "half": 0.5,
    }
    # The completed flow is (7, -5) under the mask and the truth elsewhere: it changes at its right border by 3, and at
    # the image's lower one to zero.
    powers = {change: (change**2 + 1e-6) ** 0.45 for change in (0, 3, 5, 7)}
    right = 8 * (2 * powers[3] + 14 * powers[0])
    down = 8 * (powers[7] + powers[5]) + 7 * 8 * 2 * powers[0]
    np.testing.assert_allclose(terms["smooth_first"], (right + down) / (2 * 8 * 16), rtol=RTOL)


def test_the_ternary_loss_is_least_for_the_true_flow():
    """A shift by two pixels."""
    wide = np.random.default_rng(0).uniform(size=(1, 12, 20, 3)).astype(np.float32)
    image, next_image = wide[:, :, 2:18], wide[:, :, :16]
    truth = np.broadcast_to(np.float32([2, 0]), (1, 12, 16, 2))
    mask = np.ones((1, 12, 16, 1), np.float32)

    @jax.jit
    def loss(flow):
        flows = (flow, flow[:, ::4, ::4], flow[:, ::2, ::2])
        return losses.completion_terms(flows, truth, mask, (image, next_image))["ternary"]

    right, gradient = jax.jit(jax.value_and_grad(loss))(truth)
    wrong = loss(truth - np.float32([1, 0]))
    # What is left is the border's, where pixels come from beyond the image.
    assert 0 < right < 0.1 * wrong
    assert np.all(np.isfinite(gradient))


def test_an_empty_mask_costs_nothing_and_no_gradient_is_nan():
    truth, mask = jnp.zeros((1, 8, 8, 2)), jnp.zeros((1, 8, 8, 1))
    image = jnp.zeros((1, 8, 8, 3))

    def total(flow):
        terms = losses.completion_terms((flow, flow[:, ::4, ::4], flow[:, ::2, ::2]), truth, mask, (image, image))
        return sum(terms.values()), terms

    (_, terms), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(truth)
    assert not any(terms.values())
    assert np.all(np.isfinite(gradient))
