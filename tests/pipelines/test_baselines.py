import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.base import OUTPAINTERS
from m3ddm_jax.pipelines.compositing import resize
from m3ddm_jax.pipelines.mosaic import register
from m3ddm_jax.video import FrameSource

BASELINES = ["edge", "blur", "telea", "mosaic"]


def world(height=160, width=480, seed=0):
    """A large textured picture, of which cameras see a part."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (1, height // 8, width // 8, 3), np.uint8).astype(np.float32)
    return np.clip(resize(coarse, height, width), 0, 255).astype(np.uint8)[0]


def pan(num_frames, step=6, height=96, width=128, picture=None):
    picture = world() if picture is None else picture
    return np.stack([picture[32 : 32 + height, i * step : i * step + width] for i in range(num_frames)])


def run(name, source, canvas):
    return np.concatenate(list(OUTPAINTERS[name]()(source, canvas, None)))


@pytest.mark.parametrize("name", BASELINES)
@settings(max_examples=8)
@given(
    st.integers(1, 11),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(*[st.integers(0, 9)] * 4),
    st.sampled_from(["noise", "black", "white"]),
)
def test_shapes_of_any_video_and_canvas(name, num_frames, size, pad, kind):
    left, top, right, bottom = pad
    canvas = Canvas.from_pad(
        *size, left, top, right + (size[1] + left + right) % 2, bottom + (size[0] + top + bottom) % 2
    )
    frames = np.full((num_frames, *size, 3), 255 * (kind == "white"), np.uint8)
    if kind == "noise":
        frames = np.random.default_rng(0).integers(0, 256, frames.shape, np.uint8)
    chunks = list(OUTPAINTERS[name]()(FrameSource.from_array(frames), canvas, None))
    assert all(chunk.dtype == np.uint8 for chunk in chunks)
    filled = np.concatenate(chunks)
    assert filled.shape == (num_frames, canvas.height, canvas.width, 3)
    if kind != "noise":
        np.testing.assert_array_equal(canvas.paste(filled, frames), np.broadcast_to(frames[0, 0, 0], filled.shape))


def test_edge_repeats_the_edge():
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), np.uint8)
    filled = run("edge", FrameSource.from_array(frames), Canvas.from_pad(6, 8, 2, 2, 4, 0))
    np.testing.assert_array_equal(filled, np.pad(frames, ((0, 0), (2, 0), (2, 4), (0, 0)), mode="edge"))


def test_blur_begins_like_edge_and_ends_in_a_blur():
    frames = pan(2)
    canvas = Canvas.from_pad(96, 128, 128, 0, 0, 0)
    source = FrameSource.from_array(frames)
    blur, edge = run("blur", source, canvas), run("edge", source, canvas)
    np.testing.assert_array_equal(blur[:, :, 127], edge[:, :, 127])
    assert blur[:, :, :20].std(axis=1).mean() < 0.5 * edge[:, :, :20].std(axis=1).mean()


def test_registration_finds_a_pan_and_a_cut():
    frames = np.concatenate([pan(6, step=6), pan(4, step=-0, picture=world(seed=5))])
    places, scenes = register(FrameSource.from_array(frames))
    assert scenes.tolist() == [0] * 6 + [1] * 4
    shifts = places[:, :2, 2]
    np.testing.assert_allclose(shifts[:6], [(6 * i, 0) for i in range(6)], atol=0.5)
    np.testing.assert_allclose(places[6:], np.broadcast_to(np.eye(3), (4, 3, 3)), atol=0.01)


def test_mosaic_shows_what_other_frames_saw():
    picture, step, num_frames = world(), 6, 24
    frames = pan(num_frames, step, picture=picture)
    canvas = Canvas.from_pad(96, 128, 64, 0, 64, 0)
    source = FrameSource.from_array(frames)
    index = num_frames // 2
    truth = picture[32:128, index * step - 64 : index * step + 192].astype(int)
    seen = np.zeros(canvas.mask().shape[:2], bool)
    seen[8:-8, 24:-24] = True  # away from the edges of the mosaic, where it fades
    outside = seen & (canvas.mask()[..., 0] == 1)
    mosaic, blur = (
        np.abs(run(name, source, canvas)[index].astype(int) - truth)[outside].mean() for name in ("mosaic", "blur")
    )
    assert mosaic < 6 < blur


def test_mosaic_takes_nothing_across_a_cut():
    first, second = pan(8), pan(8, picture=255 - world(seed=3) // 4)
    canvas = Canvas.from_pad(96, 128, 32, 0, 32, 0)
    joined = run("mosaic", FrameSource.from_array(np.concatenate([first, second])), canvas)
    np.testing.assert_allclose(joined[:4], run("mosaic", FrameSource.from_array(first), canvas)[:4], atol=1)


@pytest.mark.parametrize("name", BASELINES)
def test_memory_does_not_grow_with_the_video(name):
    """A source that draws its frames when they are asked for, three lengths of what an outpainter may hold."""

    class Endless(FrameSource):
        def __init__(self, num_frames):
            self.height, self.width, self._count = 64, 64, num_frames

        def __len__(self):
            return self._count

        def __getitem__(self, key):
            indices = range(self._count)[key] if isinstance(key, slice) else key
            grey = np.array([i % 256 for i in indices], np.uint8)
            return np.tile(grey[:, None, None, None], (1, 64, 64, 3))

    peaks = []
    for num_frames in (300, 900):
        tracemalloc.start()
        for chunk in OUTPAINTERS[name]()(Endless(num_frames), Canvas.from_size(64, 64, 64, 66), None):
            assert len(chunk) <= 16
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # a few numbers a frame may be kept, and a frame is 12288 bytes
    assert peaks[1] - peaks[0] < 600 * 1000
