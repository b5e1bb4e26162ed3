import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from m3ddm_jax.geometry import Canvas, CanvasMasks

SIDE = st.integers(1, 400)
ANCHOR = st.tuples(st.floats(0, 1), st.floats(0, 1))
ASPECT = st.floats(0.1, 10)


def check(canvas, height, width):
    assert canvas.height % 2 == 0 and canvas.width % 2 == 0
    assert canvas.height >= height and canvas.width >= width
    rows, columns = canvas.box
    assert (rows.stop - rows.start, columns.stop - columns.start) == (height, width)
    mask = canvas.mask()
    assert mask.shape == (canvas.height, canvas.width, 1) and mask.dtype == np.uint8
    assert mask.sum() == canvas.height * canvas.width - height * width
    assert not mask[canvas.box].any()


@given(SIDE, SIDE, ASPECT, ANCHOR)
def test_an_aspect_gives_the_nearest_even_canvas_that_holds_the_source(height, width, aspect, anchor):
    canvas = Canvas.from_aspect(height, width, aspect, anchor)
    check(canvas, height, width)
    # one direction grows at most (and a pixel where the source's side is odd), to within a pixel of the aspect
    assert canvas.height <= height + 1 or canvas.width <= width + 1
    exact = canvas.height * aspect if width / height < aspect else canvas.width / aspect
    grown, minimum = (canvas.width, width) if width / height < aspect else (canvas.height, height)
    assert abs(grown - max(exact, minimum)) <= 1 + 1e-6


@given(SIDE, SIDE, st.integers(0, 200), st.integers(0, 200), ANCHOR)
def test_a_size_is_kept_and_the_anchor_gives_the_offset(height, width, more_height, more_width, anchor):
    target = (height + more_height, width + more_width)
    if target[0] % 2 or target[1] % 2:
        with pytest.raises(ValueError, match="even"):
            Canvas.from_size(height, width, *target, anchor)
        return
    canvas = Canvas.from_size(height, width, *target, anchor)
    check(canvas, height, width)
    assert (canvas.height, canvas.width) == target
    assert (canvas.left, canvas.top) == (math.floor(more_width * anchor[0]), math.floor(more_height * anchor[1]))


@given(SIDE, SIDE, st.tuples(*[st.integers(0, 60)] * 4))
def test_padding_is_kept(height, width, pad):
    left, top, right, bottom = pad
    if (height + top + bottom) % 2 or (width + left + right) % 2:
        with pytest.raises(ValueError, match="even"):
            Canvas.from_pad(height, width, *pad)
        return
    canvas = Canvas.from_pad(height, width, *pad)
    check(canvas, height, width)
    assert (canvas.left, canvas.top) == (left, top)
    assert canvas.width - canvas.left - width == right and canvas.height - canvas.top - height == bottom


@pytest.mark.parametrize("sides", list(itertools.product((0, 4), repeat=4)))
def test_all_subsets_of_sides(sides):
    check(Canvas.from_pad(10, 8, *sides), 10, 8)


@pytest.mark.parametrize("aspect", ["16:9", "9:16", "1:1", "4:5", "4:3", "21:9", "2.39:1"])
@pytest.mark.parametrize("size", [(512, 512), (480, 854), (1296, 720), (367, 479), (1, 1)])
def test_usual_aspects(aspect, size):
    width, height = map(float, aspect.split(":"))
    canvas = Canvas.from_aspect(*size, width / height)
    check(canvas, *size)
    if min(size) > 100:
        assert canvas.width / canvas.height == pytest.approx(width / height, rel=0.005)


def test_512_square_to_16_9():
    canvas = Canvas.from_aspect(512, 512, 16 / 9)
    assert (canvas.height, canvas.width, canvas.top, canvas.left) == (512, 910, 0, 199)
    assert Canvas.from_aspect(512, 512, 16 / 9, (0, 0)).left == 0
    assert Canvas.from_aspect(512, 512, 16 / 9, (1, 0)).left == 398
    assert Canvas.from_aspect(512, 512, 1.0).mask().sum() == 0


@given(SIDE.filter(lambda s: s < 60), SIDE.filter(lambda s: s < 60), ASPECT, ANCHOR, st.integers(0, 3))
def test_paste_and_crop_are_inverse_and_touch_nothing_else(height, width, aspect, anchor, num_frames):
    canvas = Canvas.from_aspect(height, width, aspect, anchor)
    rng = np.random.default_rng(height * 1000 + width)
    source = rng.integers(0, 256, (num_frames, height, width, 3), np.uint8)
    frames = rng.integers(0, 256, (num_frames, canvas.height, canvas.width, 3), np.uint8)
    before = frames.copy()
    pasted = canvas.paste(frames, source)
    assert pasted.dtype == np.uint8
    np.testing.assert_array_equal(pasted[:, *canvas.box], source)
    outside = canvas.mask()[..., 0] == 1
    np.testing.assert_array_equal(pasted[:, outside], frames[:, outside])
    np.testing.assert_array_equal(frames, before)


class Drawn(np.ndarray):
    """Masks [T,h,w,1] in memory, with their size."""

    height, width = property(lambda self: self.shape[1]), property(lambda self: self.shape[2])


@pytest.mark.parametrize("on_canvas", [False, True])
@pytest.mark.parametrize("pad", [(0, 0, 0, 0), (6, 0, 2, 0), (3, 5, 4, 2)])
def test_masks_lie_on_the_source_or_on_the_canvas_and_the_border_is_generated(pad, on_canvas):
    left, top, right, bottom = pad
    canvas = Canvas.from_pad(11 if top else 12, 9 if left == 3 else 10, *pad)
    shape = (canvas.height, canvas.width) if on_canvas else (canvas.source_height, canvas.source_width)
    drawn = np.random.default_rng(0).integers(0, 2, (5, *shape, 1), np.uint8)
    masks = CanvasMasks(drawn.view(Drawn), canvas)
    assert (masks.height, masks.width) == (canvas.height, canvas.width)
    placed = np.asarray(masks[1:4])
    assert placed.shape == (3, canvas.height, canvas.width, 1) and placed.dtype == np.uint8
    holes = drawn[1:4, *canvas.box] if on_canvas else drawn[1:4]
    np.testing.assert_array_equal(placed[:, *canvas.box], holes)
    assert (placed[:, canvas.mask()[..., 0] == 1] == 1).all()
    # What is pasted is the source where the masks are 0, and nowhere else.
    frames, source = np.full((3, canvas.height, canvas.width, 3), 7), np.full((3, *holes.shape[1:3], 3), 9)
    pasted = canvas.paste(frames, source, placed)
    np.testing.assert_array_equal(pasted, np.broadcast_to(np.where(placed, 7, 9), pasted.shape))


def test_masks_of_another_size_are_refused():
    drawn = np.zeros((1, 8, 8, 1), np.uint8).view(Drawn)
    with pytest.raises(ValueError, match="the masks are 8x8: 10x12 or 14x12 is accepted, the source's size or the"):
        CanvasMasks(drawn, Canvas.from_pad(12, 10, 2, 0, 2, 0))
    with pytest.raises(ValueError, match="the masks are 8x8: 10x12 is accepted"):
        CanvasMasks(drawn, Canvas.from_size(12, 10, 12, 10))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Canvas.from_size(512, 512, 512, 510), "510x512 is smaller than the source's 512x512"),
        (lambda: Canvas.from_size(512, 512, 511, 900), "smaller"),
        (lambda: Canvas.from_size(512, 512, 512, 901), "even, found 901x512"),
        (lambda: Canvas.from_size(512, 512, 512, 900, (0.5, 1.5)), "anchor"),
        (lambda: Canvas.from_size(512, 512, 512, 900, (math.nan, 0.5)), "anchor"),
        (lambda: Canvas.from_aspect(512, 512, 0.0), "aspect"),
        (lambda: Canvas.from_aspect(512, 512, math.nan), "aspect"),
        (lambda: Canvas.from_aspect(512, 512, math.inf), "aspect"),
        (lambda: Canvas.from_pad(512, 512, -2, 0, 2, 0), "negative"),
        (lambda: Canvas.from_size(0, 512, 512, 512), "no pixels"),
        (lambda: Canvas(20, 20, 10, 10, 0, 11), "does not lie"),
        (lambda: Canvas.from_size(4, 4, 6, 6).paste(np.zeros((1, 6, 6, 3)), np.zeros((2, 4, 4, 3))), "shapes"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
