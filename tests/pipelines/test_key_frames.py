import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from m3ddm_jax.pipelines.key_frames import plan_key_frames, plan_sequence


@st.composite
def videos(draw):
    num_frames = draw(st.integers(1, 2000))
    cuts = draw(st.sets(st.integers(1, num_frames - 1), max_size=20)) if num_frames > 1 else set()
    return num_frames, sorted(cuts)


def shot_of(frame, cuts):
    return sum(frame >= cut for cut in cuts)


def check(levels, num_frames, cuts, window):
    made = set()
    for level in levels:
        for stage in level:
            before = set(made)
            for w in stage:
                assert len(w.frames) == len(w.guides) == len(w.writes) == window
                assert len({shot_of(frame, cuts) for frame in w.frames}) == 1, "windows keep to their shot"
                guides = {frame for frame, guide in zip(w.frames, w.guides, strict=True) if guide}
                writes = [frame for frame, writes in zip(w.frames, w.writes, strict=True) if writes]
                assert guides <= before, "guides are made before"
                assert writes and len(writes) == len(set(writes)) and not set(writes) & made
                made |= set(writes)
    assert made == set(range(num_frames))


def test_every_length_has_each_frame_once_and_its_ends_first():
    for num_frames in range(1, 2001):
        levels = plan_key_frames(num_frames)
        check(levels, num_frames, [], 16)
        for level in levels[1:]:
            for w in level[0]:
                assert w.guides[0] and w.guides[-1] and w.frames[0] < w.frames[1]
                assert all(w.frames[0] < f < w.frames[-1] for f, x in zip(w.frames, w.writes, strict=True) if x)


@given(videos(), st.sampled_from([3, 8, 16]))
@example((2000, list(range(1, 2000))), 16)
@example((1, []), 3)
def test_no_window_crosses_a_cut(video, window):
    num_frames, cuts = video
    levels = plan_key_frames(num_frames, cuts, window)
    check(levels, num_frames, cuts, window)
    assert all(len(level) == 1 for level in levels), "a level is one batch"
    firsts = [w.frames[0] for w in levels[-1][0]]
    assert firsts == sorted(firsts)


@given(videos(), st.sampled_from([3, 8, 16]))
def test_a_sequence_goes_from_clip_to_clip(video, window):
    num_frames, cuts = video
    levels = plan_sequence(num_frames, cuts, window)
    check(levels, num_frames, cuts, window)
    windows = [stage[0] for stage in levels[0]]
    assert all(len(stage) == 1 for stage in levels[0])
    for earlier, later in zip(windows, windows[1:], strict=False):
        if shot_of(earlier.frames[0], cuts) == shot_of(later.frames[0], cuts):
            assert later.guides[0] and later.frames[0] <= max(earlier.frames)


@pytest.mark.parametrize(("num_frames", "depth"), [(1, 1), (16, 1), (17, 2), (226, 2), (227, 3), (2000, 3)])
def test_levels_come_with_length(num_frames, depth):
    assert len(plan_key_frames(num_frames)) == depth


def test_short_shots_go_back_and_forth_and_short_intervals_wait_at_their_end():
    [[[short]], *_] = plan_key_frames(3, window=8)
    assert short.frames == (0, 1, 2, 1, 0, 1, 2, 1)
    assert short.writes == (True,) * 3 + (False,) * 5
    interval = plan_key_frames(10, window=8)[1][0][0]
    assert interval.frames == (0, 1, 2, 3, 4, 4, 4, 4)
    assert interval.guides == (True, False, False, False, True, True, True, True)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [((0,), "0 frame"), ((4, [4]), r"\[4\]"), ((4, [2, 2]), r"\[2, 2\]"), ((4, [], 2), "at least 3")],
)
def test_bad_arguments_are_named(arguments, found):
    with pytest.raises(ValueError, match=found):
        plan_key_frames(*arguments)
