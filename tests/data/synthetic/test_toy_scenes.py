import dataclasses

import numpy as np
import pytest

from data import clips, sources
from data.masks import MaskSampler
from data.pipeline import make_batches
from data.synthetic import toy_scenes

FRAMES, GLOBAL = 4, 8
KNOWN = slice(toy_scenes.SIDE // 4, 3 * toy_scenes.SIDE // 4)
MIDDLE = MaskSampler(
    four=0, single=0, horizontal=1, vertical=0, random=0, all=0, min_ratio=0.5, max_ratio=0.5, all_masked=1,
    ends_known=0, random_known=0,
)  # fmt: skip
SEEDS = range(6)


def known_and_hidden(scene, indices):
    """What a clip shows, and what it hides."""
    frames = np.stack([scene.frame(index) for index in indices])
    return frames[:, :, KNOWN], np.delete(frames, KNOWN, axis=2)


def in_other_colour(scene, name):
    return dataclasses.replace(scene, **{name: tuple(1 - np.array(getattr(scene, name)))})


@pytest.mark.parametrize("seed", SEEDS)
def test_of_the_visitors_colour_a_clip_tells_nothing_and_the_global_frames_tell_it(seed):
    scene = toy_scenes.make_scene(seed)
    other = in_other_colour(scene, "visiting_colour")
    resting = [index for index in range(toy_scenes.NUM_FRAMES) if scene.nearness(index) == 0]
    (known, hidden), (same, another) = (known_and_hidden(s, resting) for s in (scene, other))
    assert (known == same).all() and (hidden != another).any(axis=(1, 2, 3)).all(), "on each frame"
    shown = clips.global_indices(toy_scenes.NUM_FRAMES, GLOBAL)
    met = [index for index in shown if scene.nearness(index) == 1]
    assert met, "the visit falls on a global frame"
    (known, _), (another, _) = (known_and_hidden(s, met) for s in (scene, other))
    assert ((known != another).any(axis=-1).sum(axis=(1, 2)) == 2 * 8 * 12).all(), "two blocks, as a whole"


@pytest.mark.parametrize("seed", SEEDS)
def test_of_the_swinging_colour_a_frame_may_tell_nothing_and_each_clip_tells_it(seed):
    scene = toy_scenes.make_scene(seed)
    pairs = [
        known_and_hidden(s, range(toy_scenes.NUM_FRAMES)) for s in (scene, in_other_colour(scene, "swinging_colour"))
    ]
    told, asked = ((a != b).any(axis=(1, 2, 3)) for a, b in zip(*pairs, strict=True))
    for start in range(toy_scenes.NUM_FRAMES - FRAMES + 1):
        clip = slice(start, start + FRAMES)
        assert told[clip].any() and (asked & ~told)[clip].any()


def test_batches_hold_whole_scenes_most_of_which_are_visited_at_another_time():
    batches = make_batches(
        [("synthetic", "visits", 1.0)], batch_size=32, num_frames=FRAMES, buckets=((toy_scenes.SIDE, toy_scenes.SIDE),),
        global_frames=GLOBAL, global_size=32, global_fit="pad", max_interval=1, seed=0, masks=MIDDLE, num_threads=1,
    )  # fmt: skip
    batch = next(iter(batches))
    assert (batch["known"] == [0, toy_scenes.SIDE, KNOWN.start, KNOWN.stop]).all()
    unvisited = []
    for name, video in zip(batch["clip_id"], batch["video"], strict=True):
        seed, start = (int(part) for part in name.removeprefix("visits/").removesuffix("+1").split("@"))
        scene, indices = toy_scenes.make_scene(seed), range(start, start + FRAMES)
        drawn = np.stack([scene.frame(index) for index in indices])
        assert (video == drawn).all() or (video == drawn[:, :, ::-1]).all(), "mirrored at most"
        unvisited.append(all(scene.nearness(index) == 0 for index in indices))
    assert 0.4 < np.mean(unvisited) < 0.9


def test_visits_are_a_source_of_videos():
    source = sources.open_source("synthetic", "visits")
    assert source.name(3) == "visits/3"
    video = source.open(3)
    assert video.info[:4] == (toy_scenes.NUM_FRAMES, 24.0, toy_scenes.SIDE, toy_scenes.SIDE)
    assert (video.read([5, 2])[1] == toy_scenes.make_scene(3).frame(2)).all()
    assert video.read([5], (32, 40)).shape == (1, 32, 40, 3)
    with pytest.raises(ValueError, match="unknown synthetic scenes 'journeys', known: an empty path and 'visits'"):
        sources.open_source("synthetic", "journeys")
