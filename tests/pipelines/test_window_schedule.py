import itertools
import json

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from m3ddm_jax.pipelines.key_frames import plan_key_frames
from m3ddm_jax.pipelines.window_schedule import official_windows, plan_batches, plan_windows

GRIDS = st.sampled_from(
    [(16, (15, 5, 1)), (16, (1,)), (8, (6, 2, 1)), (16, (30, 15, 1)), (2, (4, 2, 1)), (5, (15, 5, 1))]
)


def flat(levels):
    return [window for level in levels for stage in level for window in stage]


@given(st.integers(1, 2000), GRIDS)
@example(1, (16, (15, 5, 1)))
@example(17, (16, (15, 5, 1)))
@example(227, (16, (15, 5, 1)))
@example(2000, (16, (15, 5, 1)))
def test_every_frame_has_one_writer_and_guides_are_made_before(num_frames, grid):
    window, strides = grid
    made, coarser = set(), set()
    levels = plan_windows(num_frames, window, strides)
    for depth, level in enumerate(levels):
        for stage in level:
            before = set(made)
            for w in stage:
                assert list(w.frames) == sorted(set(w.frames)), "in time order, none twice"
                assert w.frames[0] >= 0 and w.frames[-1] < num_frames
                assert len(w.frames) <= window
                assert len(w.frames) == len(w.guides) == len(w.writes) and any(w.writes)
                assert not any(g and x for g, x in zip(w.guides, w.writes, strict=True))
                guides = {f for f, g in zip(w.frames, w.guides, strict=True) if g}
                assert guides == set(w.frames) & before, "what is made before the stage is a guide, and only that"
                if depth:
                    assert guides <= coarser, "finer levels depend on coarser ones alone"
                writes = {f for f, x in zip(w.frames, w.writes, strict=True) if x}
                assert not writes & made, "one writer"
                made |= writes
        coarser = set(made)
        assert {0, num_frames - 1} <= made, "the first and the last frame belong to each level"
        if depth:
            assert len(level) == 1, "a finer level is one stage"
    assert made == set(range(num_frames))


@given(st.integers(1, 2000))
def test_windows_are_full_wherever_the_level_has_so_many_frames(num_frames):
    for level in plan_windows(num_frames):
        stride = level[0][0].stride
        keys = len({*range(0, num_frames, stride), num_frames - 1})
        assert {len(w.frames) for stage in level for w in stage} == {min(16, keys)}


@pytest.mark.parametrize(
    ("num_frames", "strides"), [(1, [1]), (16, [1]), (17, [5, 1]), (76, [5, 1]), (77, [15, 5, 1]), (5000, [15, 5, 1])]
)
def test_which_levels_a_length_needs(num_frames, strides):
    assert [level[0][0].stride for level in plan_windows(num_frames)] == strides


def test_one_frame():
    (window,) = flat(plan_windows(1))
    assert (window.frames, window.guides, window.writes) == ((0,), (False,), (True,))


def test_a_finer_window_lies_between_guides():
    """Where levels nest, every window of a finer level begins and ends with a guide."""
    for level in plan_windows(451)[1:]:
        assert all(w.guides[0] and w.guides[-1] for stage in level for w in stage)


def test_the_coarsest_level_of_a_long_video_is_a_chain():
    first, *rest = plan_windows(1000)[0]
    assert not any(first[0].guides)
    assert rest and all(len(stage) == 1 and stage[0].guides[0] for stage in rest)


@pytest.mark.parametrize(
    "arguments", [(0,), (16, 1), (16, 16, ()), (16, 16, (5, 2)), (16, 16, (15, 4, 1)), (16, 16, (1, 5))]
)
def test_bad_input(arguments):
    with pytest.raises(ValueError, match="found"):
        plan_windows(*arguments)


def test_official_windows_are_those_of_the_released_code(goldens):
    for num_frames, expected in json.loads((goldens / "m3ddm" / "windows.json").read_text()).items():
        windows = flat(official_windows(int(num_frames)))
        assert len(windows) == expected["n_windows"]
        for window, golden in zip(windows, expected["windows"], strict=True):
            assert (window.stride, window.frames) == (golden["stride"], tuple(golden["frames"]))
            assert [place for place, guide in enumerate(window.guides) if guide] == golden["guide_positions"]
            assert sum(window.writes) == len(set(window.frames))


@given(st.integers(1, 400), st.sampled_from([1, 3, 8]), st.sampled_from(["parallel", "official", "key frames"]))
def test_what_a_batch_calls_final_or_needless_stays_so(num_frames, size, plan):
    """Also where frames are made more than once, as the official schedule does."""
    make = {"parallel": plan_windows, "official": official_windows, "key frames": plan_key_frames}[plan]
    levels = make(num_frames)
    batches = plan_batches(levels, size, num_frames)
    assert [window for batch in batches for window in batch.windows] == flat(levels)
    assert all(window in flat([levels[batch.level]]) for batch in batches for window in batch.windows)
    writes = [{f for w in batch.windows for f in itertools.compress(w.frames, w.writes)} for batch in batches]
    guides = [{f for w in batch.windows for f in itertools.compress(w.frames, w.guides)} for batch in batches]
    for place, batch in enumerate(batches, start=1):
        assert len(batch.windows) <= size
        assert batch.final == min(set().union(*writes[place:]), default=num_frames)
        assert batch.needed == min(set().union(*guides[place:]), default=num_frames)
