import json

import numpy as np
import pytest

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models.autoencoder import reduce_mask
from m3ddm_jax.pipelines.work_canvas import SquareCanvas, WorkCanvas, square_box, square_crop, target_size


def test_a_work_canvas_is_a_multiple_near_its_lines_and_calls_nothing_unknown_known():
    canvas = Canvas.from_pad(50, 40, 31, 4, 31, 2)
    work = WorkCanvas(canvas, lines=32, multiple=8)
    assert (work.height, work.width) == (32, 56)
    rows = np.arange(work.height + 1) * canvas.height / work.height
    columns = np.arange(work.width + 1) * canvas.width / work.width
    for row in range(work.height):
        for column in range(work.width):
            inside = canvas.top <= rows[row] + 1e-6 and rows[row + 1] - 1e-6 <= canvas.top + canvas.source_height
            inside &= canvas.left <= columns[column] + 1e-6
            inside &= columns[column + 1] - 1e-6 <= canvas.left + canvas.source_width
            assert work.mask[row, column, 0] == (not inside)


@pytest.mark.parametrize("lines", [32, 50, 64])
def test_a_work_pixel_is_known_where_all_that_it_holds_is(lines):
    canvas = Canvas.from_pad(60, 80, 10, 2, 12, 2)
    work = WorkCanvas(canvas, lines, multiple=2)
    masks = np.repeat(canvas.mask()[None], 2, axis=0)
    masks[0, 30, 40] = masks[1, 10:21, 33:52] = 1
    frames = np.full((2, 60, 80, 3), 80, np.uint8)
    frames[masks[:, *canvas.box][..., 0] == 1] = 255
    reduced, placed = work.reduce(masks), work.place(frames)
    assert reduced.shape == (2, work.height, work.width, 1) and reduced.dtype == np.uint8
    assert (reduced >= work.mask).all()
    assert (placed[reduced[..., 0] == 0] == 80).all(), "nothing of a hole shows"
    holes = reduced.sum((1, 2, 3)) - int(work.mask.sum())
    scale = work.height / canvas.height
    assert 1 <= holes[0] <= 4 and holes[1] <= (11 * scale + 2) * (19 * scale + 2), "and little more is hidden"


def test_the_work_canvas_of_a_portrait_is_a_portrait():
    work = WorkCanvas(Canvas.from_aspect(64, 64, 9 / 16), lines=32, multiple=8)
    assert (work.height, work.width) == (56, 32)


def test_the_square_equals_the_official_one(goldens):
    cases = json.loads((goldens / "m3ddm/geometry.json").read_text())
    assert len(cases) == 50
    for case in cases:
        height, width = case["h"], case["w"]
        aspects = [int(w) / int(h) for w, h in (ratio.split(":") for ratio in case["ratio"].split(","))]
        # Several aspects at once: the released code makes one square for the largest of each side.
        target = tuple(max(sides) for sides in zip(*(target_size(height, width, a) for a in aspects), strict=True))
        if "error" in case:
            # It fails where the longer side is at most 256 but was divided: no whole number to numpy.
            assert max(target) <= 256
            continue
        assert target == pytest.approx(tuple(case["max_target_hw"]))
        side = SquareCanvas(Canvas.from_size(height, width, *whole(target)), lines=256, multiple=64).height
        assert case["canvas"] == [side, side]
        box = square_box(height, width, *target, side)
        assert [box[0].start, box[1].start] == case["content_top_left"]
        assert [part.stop - part.start for part in box] == case["content_hw"]
        mask = np.ones((side, side, 1))
        mask[box] = 0
        assert 1 - mask.mean() == pytest.approx(case["known_fraction"])
        assert (np.asarray(reduce_mask(mask, 8, "nearest")) == 0).sum() == case["latent_mask_known"]
        for aspect, output in zip(aspects, case["outputs"], strict=True):
            rows, columns = square_crop(aspect, side)
            assert [columns.stop - columns.start, rows.stop - rows.start] == output["size_wh"]


def whole(target):
    """Even sides about those of a target."""
    return [2 * round(side / 2) for side in target]


@pytest.mark.parametrize(("height", "width", "aspect"), [(1080, 1920, 9 / 16), (480, 854, 3 / 4), (64, 48, 16 / 9)])
def test_the_square_of_a_canvas_stands_for_the_aspect_that_was_asked_for(height, width, aspect):
    work = SquareCanvas(Canvas.from_aspect(height, width, aspect), lines=256, multiple=64)
    box = square_box(height, width, *target_size(height, width, aspect), 256)
    expected = np.ones((256, 256, 1))
    expected[box] = 0
    np.testing.assert_array_equal(work.mask, expected)


def test_the_square_gives_back_what_was_generated_and_keeps_the_source():
    canvas = Canvas.from_aspect(64, 64, 2.0)
    work = SquareCanvas(canvas, lines=64, multiple=64)
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    placed = work.place(frames)
    assert placed.shape == (2, 64, 64, 3) and (placed[:, :16] == 0).all() and (placed[:, 16:48, 16:48] > 0).any()
    shown = work.to_canvas(np.full(placed.shape, 99.9, np.float32), frames)
    assert shown.shape == (2, canvas.height, canvas.width, 3)
    assert (shown[:, :, :24] == 99).all()  # cut, not rounded
    assert (shown[:, :, 40:88] != 99).any()


def test_what_no_square_can_hold_is_named():
    with pytest.raises(ValueError, match="100 lines: a multiple of 64"):
        SquareCanvas(Canvas.from_aspect(64, 64, 2.0), lines=100, multiple=64)
    with pytest.raises(ValueError, match="in the middle"):
        SquareCanvas(Canvas.from_aspect(64, 64, 2.0, (0.0, 0.5)), lines=256, multiple=64)
