import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from m3ddm_jax.flow.least_squares import Anchors, Edges, differences, solve

HEIGHT, WIDTH = 9, 11
BITS = arrays.arrays(np.bool_, (1, HEIGHT, WIDTH, 1))


def draw(channels=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(size=(1, HEIGHT, WIDTH, channels)).astype(np.float32)


def exact(images, mask, gradients, weights, anchors=None):
    """The least-squares solution of least norm, by numpy in float64."""
    index = np.full((HEIGHT, WIDTH), -1)
    index[mask[0, ..., 0]] = np.arange(mask.sum())
    matrix, wanted = [], []
    for (down, right), gradient, weight in zip(((0, 1), (1, 0)), gradients, weights, strict=True):
        for y, x in np.ndindex(HEIGHT - down, WIDTH - right):
            here, there = (y, x), (y + down, x + right)
            row, value = np.zeros(mask.sum()), np.float64(gradient[0, y, x])
            for sign, place in ((-1, here), (1, there)):
                if index[place] >= 0:
                    row[index[place]] = sign
                else:
                    value = value - sign * images[0][place]
            matrix.append(np.sqrt(weight[0, y, x, 0]) * row)
            wanted.append(np.sqrt(weight[0, y, x, 0]) * value)
    for place in zip(*np.nonzero(mask[0, ..., 0]), strict=True) if anchors else ():
        share = np.sqrt(anchors.weights[0][place])
        matrix.append(share * np.eye(mask.sum())[index[place]])
        wanted.append(share * np.float64(anchors.values[0][place]))
    solved = images.astype(np.float64)
    solved[0][mask[0, ..., 0]] = np.linalg.lstsq(np.array(matrix), np.array(wanted), rcond=1e-10)[0]
    return solved


@settings(max_examples=15)
@given(BITS, BITS, BITS, st.sampled_from([0.0, 1.0, 100.0]))
def test_finds_what_numpy_finds(mask, right, down, farther):
    """Any region, and edges missing anywhere, so that parts float: fills exactly as far as float32 goes."""
    images, gradients = draw(), Edges(draw(seed=1) - 0.5, draw(seed=2) - 0.5)
    weights = Edges(right * np.float32(1 + farther), down * np.float32(1))
    found = solve(images, mask, gradients, weights)
    # 1e-6 of the residual, times the condition of a region of 99 pixels whose edges differ up to 100 times.
    np.testing.assert_allclose(found, exact(images, mask, gradients, weights), atol=3e-4 if farther > 1 else 5e-5)
    np.testing.assert_array_equal(np.asarray(found)[~mask[..., 0]], images[~mask[..., 0]])


@settings(max_examples=10)
@given(BITS, BITS, BITS, BITS)
def test_anchors_draw_colours_to_them(mask, right, down, held):
    """Also where no edge leads to what is known, and no more where they weigh nothing."""
    images, gradients = draw(), Edges(draw(seed=1) - 0.5, draw(seed=2) - 0.5)
    weights = Edges(np.float32(right), np.float32(down))
    anchors = Anchors(draw(seed=3), 0.3 * held.astype(np.float32))
    found = solve(images, mask, gradients, weights, anchors=anchors)
    np.testing.assert_allclose(found, exact(images, mask, gradients, weights, anchors), atol=5e-5)
    nothing = anchors._replace(weights=0 * anchors.weights)
    without = solve(images, mask, gradients, weights)
    np.testing.assert_allclose(solve(images, mask, gradients, weights, anchors=nothing), without, atol=1e-6)


def test_nothing_is_known():
    """What is tied to itself alone has zero mean, and nothing at all stays 0."""
    images, everything = draw(), np.ones((1, HEIGHT, WIDTH, 1))
    found = solve(images, everything, differences(images), Edges(everything, everything))
    np.testing.assert_allclose(found, images - images.mean((1, 2), keepdims=True), atol=2e-5)
    np.testing.assert_array_equal(
        solve(images, everything, differences(images), Edges(0 * everything, 0 * everything)), 0
    )


def test_images_are_solved_each_by_itself():
    images, mask = np.concatenate([draw(), 50 * draw(seed=3)]), np.ones((1, HEIGHT, WIDTH, 1))
    mask[:, 2:5, 3:8] = 0
    weights = Edges(np.ones_like(mask), np.ones_like(mask))
    both = solve(images, mask, differences(images), weights)
    alone = solve(images[1:], mask, differences(images[1:]), weights)
    np.testing.assert_allclose(both[1:], alone, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(both, images, rtol=1e-4, atol=1e-3)


def test_slopes_are_those_of_the_solution():
    """In images and gradients, of which the solution is a linear function: only rounding is left."""
    mask = np.ones((1, HEIGHT, WIDTH, 1))
    mask[:, 2:5, 3:8] = 0
    weights = Edges(np.ones_like(mask), np.ones_like(mask))
    tangent = draw(seed=5) - 0.5

    @jax.value_and_grad
    def measure(inputs):
        images, along = inputs
        return (solve(images, mask, Edges(along, along), weights) * tangent).sum()

    start, step = (draw(seed=0), draw(seed=4)), (draw(seed=6), draw(seed=7))
    value, slopes = measure(start)
    moved, _ = measure(tuple(a + b for a, b in zip(start, step, strict=True)))
    assert not np.asarray(slopes[0])[mask[..., 0] > 0].any()
    change = sum((slope * x).sum() for slope, x in zip(slopes, step, strict=True))
    np.testing.assert_allclose(moved - value, change, rtol=1e-3, atol=1e-3)


def test_slopes_in_weights_are_differences():
    mask = np.zeros((1, HEIGHT, WIDTH, 1))
    mask[:, 2:7, 3:8] = 1
    tangent, along = draw(seed=5) - 0.5, draw(seed=4)

    @jax.value_and_grad
    def measure(weight):
        return (solve(draw(), mask, Edges(along, along), Edges(weight, 2 * weight)) * tangent).sum()

    weight, step = 1 + draw(1, seed=6), 0.02 * draw(1, seed=7)
    _, slope = measure(weight)
    # Second differences of a step of 1 %, beside rounding.
    change = measure(weight + step)[0] - measure(weight - step)[0]
    np.testing.assert_allclose(change, 2 * (slope * step).sum(), rtol=2e-2, atol=1e-4)
