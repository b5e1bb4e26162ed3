import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from data import masks

WEIGHTS = {"four": 0.2, "single": 0.1, "horizontal": 0.175, "vertical": 0.175, "random": 0.1, "all": 0.25}
MODES = {"all_masked": 0.3, "ends_known": 0.35, "random_known": 0.35}
# upper 0.1 % points of chi-square by degrees of freedom
CHI_SQUARE = {2: 13.82, 15: 37.70}


def only(name, group, **more):
    return masks.MaskSampler(**{other: float(other == name) for other in group}, **more)


def chi_square(counts, weights):
    total = sum(counts.values())
    assert set(counts) <= {name for name, weight in weights.items() if weight}
    return sum((counts[name] - total * weight) ** 2 / (total * weight) for name, weight in weights.items() if weight)


def sides_cut(mask):
    """Which sides of a frame [H,W,1] are to be generated, as a set of names; None for a frame that is whole."""
    rows, columns = np.nonzero(mask[..., 0] == 0)
    if not len(rows):
        return None
    height, width = mask.shape[:2]
    cuts = {
        "top": rows.min(),
        "bottom": height - 1 - rows.max(),
        "left": columns.min(),
        "right": width - 1 - columns.max(),
    }
    return {side for side, cut in cuts.items() if cut}


def test_strategy_frequencies_show_in_the_masks():
    sampler = masks.MaskSampler(all_masked=1, ends_known=0, random_known=0)
    rng = np.random.default_rng(1)
    counts = collections.Counter()
    for _ in range(4000):
        sides = sides_cut(sampler(rng, 1, 32, 40).mask[0])
        counts["all" if sides is None else "".join(sorted(side[0] for side in sides))] += 1
    weights = {"all": 0.25}
    for subset in range(1, 16):
        sides = [side for bit, side in enumerate(masks.DIRECTIONS) if subset >> bit & 1]
        key = "".join(sorted(side[0] for side in sides))
        pair = set(sides) in ({"top", "bottom"}, {"left", "right"})
        weights[key] = 0.1 / 15 + 0.2 * (len(sides) == 4) + 0.025 * (len(sides) == 1) + 0.175 * pair
    assert sum(weights.values()) == pytest.approx(1)
    assert chi_square(counts, weights) < CHI_SQUARE[15]


@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    num_frames=st.integers(1, 6),
    height=st.integers(masks.MIN_SIDE, 40),
    width=st.integers(masks.MIN_SIDE, 40),
    per_frame=st.booleans(),
)
def test_every_mask_is_binary_masks_something_and_hides_at_most_all(seed, num_frames, height, width, per_frame):
    mask, box = masks.MaskSampler(per_frame=per_frame)(np.random.default_rng(seed), num_frames, height, width)
    assert mask.shape == (num_frames, height, width, 1) and mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1} and mask.any()
    assert 0 <= box.top < box.bottom <= height and 0 <= box.left < box.right <= width
    assert (box.top, box.bottom, box.left, box.right) != (0, height, 0, width)
    if not per_frame:
        kinds = {frame.tobytes() for frame in mask} - {np.zeros_like(mask[0]).tobytes()}
        assert len(kinds) == 1, "one mask a clip"
        shown = mask.max(axis=0)
        assert shown.all() or (shown == masks.box_mask(box, height, width)).all()


CUTS = ["four", "single", "horizontal", "vertical", "random"]


@hypothesis.given(seed=st.integers(0, 2**32 - 1), strategy=st.sampled_from(CUTS))
def test_what_is_generated_keeps_to_the_ratios(seed, strategy):
    sampler = only(strategy, WEIGHTS, all_masked=1, ends_known=0, random_known=0, min_ratio=0.2, max_ratio=0.6)
    mask, box = sampler(np.random.default_rng(seed), 1, 100, 200)
    sides = sides_cut(mask[0])
    for axis, length, known in (
        ({"top", "bottom"}, 100, box.bottom - box.top),
        ({"left", "right"}, 200, box.right - box.left),
    ):
        part = 1 - known / length
        cut = sides & axis
        assert bool(cut) == (part > 0)
        if strategy == "random":
            assert len(cut) * 0.1 - 0.021 <= part <= len(cut) * 0.3
        elif cut:
            assert 0.2 - 0.021 <= part <= 0.6
    expected = {"four": {4}, "single": {1}, "horizontal": {2}, "vertical": {2}, "random": {1, 2, 3, 4}}
    assert len(sides) in expected[strategy]
    if strategy in ("horizontal", "vertical"):
        assert sides == ({"left", "right"} if strategy == "horizontal" else {"top", "bottom"})
    if strategy in ("four", "horizontal", "vertical"):
        assert box.top == 100 - box.bottom and box.left == 200 - box.right, "halves are equal"


@hypothesis.given(seed=st.integers(0, 2**32 - 1), num_frames=st.integers(1, 8))
def test_frame_modes(seed, num_frames):
    rng = np.random.default_rng(seed)
    assert masks.draw_masked_frames(rng, num_frames, "all_masked").all()
    ends = masks.draw_masked_frames(rng, num_frames, "ends_known")
    if num_frames > 2:
        assert not ends[0] and ends[1:-1].all()
    both = masks.draw_masked_frames(rng, num_frames, "both_known")
    if num_frames > 2:
        assert not both[[0, -1]].any() and both[1:-1].all()
    assert both.any() and ends.any() and masks.draw_masked_frames(rng, num_frames, "random_known").any()


def test_frame_mode_frequencies():
    sampler, rng = masks.MaskSampler(all=0.0), np.random.default_rng(2)
    counts, last_known = collections.Counter(), 0
    for _ in range(2000):
        masked = sampler(rng, 16, 8, 8).mask.any(axis=(1, 2, 3))
        mode = "all_masked" if masked.all() else "ends_known" if masked[1:-1].all() else "random_known"
        counts[mode] += 1
        last_known += mode == "ends_known" and not masked[-1]
    assert chi_square(counts, MODES) < CHI_SQUARE[2]
    half = counts["ends_known"] / 2
    assert abs(last_known - half) < 3.3 * np.sqrt(half / 2)
    known = sum((~masks.draw_masked_frames(rng, 16, "random_known")).sum() for _ in range(500))
    assert abs(known - 4000) < 3.3 * np.sqrt(2000)


@pytest.mark.parametrize(("keeps", "share"), [(False, 0.25), (True, 0.25 * (0.3 + 0.35 * 0.5**16))])
def test_the_share_of_clips_that_are_hidden_wholly(keeps, share):
    sampler, rng, draws = masks.MaskSampler(all_keeps_frames=keeps), np.random.default_rng(4), 2000
    hidden = sum(sampler(rng, 16, 8, 8).mask.all() for _ in range(draws))
    assert abs(hidden - draws * share) < 3.3 * np.sqrt(draws * share * (1 - share))


def test_per_frame_masks_differ_between_frames():
    sampler = masks.MaskSampler(per_frame=True, all=0, all_masked=1, ends_known=0, random_known=0)
    mask, box = sampler(np.random.default_rng(3), 8, 64, 64)
    assert len({frame.tobytes() for frame in mask}) > 1
    assert (mask[0] == masks.box_mask(box, 64, 64)).all()


def test_a_draw_depends_on_the_generator_alone():
    draws = [masks.MaskSampler()(np.random.default_rng(5), 4, 16, 16) for _ in range(2)]
    assert (draws[0].mask == draws[1].mask).all() and draws[0].box == draws[1].box


@pytest.mark.parametrize(
    "settings",
    [
        {"four": -0.1},
        {"min_ratio": 0.8},
        {"max_ratio": 1.0},
        dict.fromkeys(MODES, 0),
        {"min_ratio": 0.0},
        {"multiple": 0},
        {"objects": 0.1, "per_frame": True},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="mask"):
        masks.MaskSampler(**settings)


def test_frames_too_small_for_a_mask_are_refused():
    with pytest.raises(ValueError, match="4x4"):
        masks.MaskSampler()(np.random.default_rng(0), 1, 3, 8)
    with pytest.raises(ValueError, match="9x9"):
        masks.MaskSampler(multiple=4)(np.random.default_rng(0), 1, 8, 16)


@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    strategy=st.sampled_from(CUTS),
    multiple=st.integers(1, 8),
    height=st.integers(17, 60),
    width=st.integers(17, 60),
)
def test_what_a_side_gives_is_a_multiple(seed, strategy, multiple, height, width):
    plain, snapped = (
        only(strategy, WEIGHTS, multiple=number)(np.random.default_rng(seed), 1, height, width).box
        for number in (1, multiple)
    )
    assert 0 <= snapped.top < snapped.bottom <= height and 0 <= snapped.left < snapped.right <= width
    for cut, found in (
        (plain.top, snapped.top),
        (height - plain.bottom, height - snapped.bottom),
        (plain.left, snapped.left),
        (width - plain.right, width - snapped.right),
    ):
        assert found == max(multiple, cut // multiple * multiple) if cut else found == 0


def test_objects_are_masked_on_every_frame_and_leave_a_source_its_whole_frame():
    sampler = only("objects", [*WEIGHTS, "objects"], all_masked=0, ends_known=0)
    mask, box = sampler(np.random.default_rng(0), 6, 40, 60)
    assert mask.shape == (6, 40, 60, 1) and mask.any(axis=(1, 2, 3)).all()
    assert box == masks.Box(0, 40, 0, 60)
    # The rectangle that hidden frames would have is one of a cut, never that of objects.
    sampler = masks.MaskSampler(**dict.fromkeys(CUTS, 0.0), all=1.0, objects=1.0)
    boxes = [sampler(np.random.default_rng(seed), 1, 40, 60) for seed in range(40)]
    assert {mask.all() for mask, _ in boxes} == {True, False}
    assert all((box == masks.Box(0, 40, 0, 60)) == (not mask.all()) for mask, box in boxes)
