import tracemalloc

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given
from safetensors.numpy import save_file

from m3ddm_jax.api.outpainting import Outpainter
from m3ddm_jax.convert import convert
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models import registry
from m3ddm_jax.models.autoencoder import PatchCodec
from m3ddm_jax.models.e2fgvi import E2FGVI
from m3ddm_jax.pipelines import in2out
from m3ddm_jax.pipelines.in2out import In2Out, _complete, average, halve, plan_inpainting_windows
from m3ddm_jax.pipelines.work_canvas import WorkCanvas, known_box
from m3ddm_jax.video import FrameSource
from m3ddm_jax.weights import save_model
from m3ddm_jax.weights.e2fgvi import _torch_name
from m3ddm_jax.weights.names import targets, torch_shape

# Frames are multiples of 12.
TINY = E2FGVI(width=4, flow_width=4, hidden=8, depth=1, num_heads=2, window=(1, 1), ffn_channels=1, deform_groups=2)
SETTINGS = {"lines": 24, "neighbours": 1, "references": 2, "reference_stride": 4}
NARROW = Canvas.from_pad(24, 24, 6, 0, 6, 0)
WIDE = Canvas.from_pad(24, 24, 20, 0, 24, 0)


def random_like(shapes):
    """What an initialisation might give, of the same size all through the network, without compiling one."""
    rng = np.random.default_rng(0)
    scaled = lambda x: rng.normal(scale=np.prod(x.shape[:-1]) ** -0.5, size=x.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(scaled, shapes)


@pytest.fixture(scope="module")
def variables():
    return random_like(registry.abstract_variables(TINY))


@pytest.fixture(scope="module")
def folder(variables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "e2fgvi"
    save_model(folder, TINY, variables)
    return folder


@pytest.fixture
def faked(folder, variables, monkeypatch):
    """make(complete, **settings): an outpainter whose network is `complete(frames, masks)`, numpy to numpy."""
    monkeypatch.setattr(in2out, "load_model", lambda folder, kind: (TINY, variables))  # reading it takes a second

    def make(complete, **settings):
        outpainter = In2Out(folder, settings={**SETTINGS, **settings})
        outpainter._complete = lambda _, frames, mask, num_local: complete(frames, mask)[:num_local].astype(np.float32)
        return outpainter

    return make


def holes_of(canvas, num_frames):
    """A hole that moves over the source, on the canvas: uint8 [n,H,W,1]; the last frame of more than 4 is all hole."""
    holes = np.zeros((num_frames, canvas.source_height, canvas.source_width, 1), np.uint8)
    for index, hole in enumerate(holes):
        hole[9:13, 6 + index % 7 :][:, :5] = 1
    holes[4:][-1:] = 1
    return canvas.masks(holes)


def noise(num_frames, height=24, width=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), np.uint8)


def run(outpainter, frames, canvas, masks=None):
    return np.concatenate(list(outpainter(FrameSource.from_array(frames), canvas, None, masks)))


@pytest.fixture(scope="module")
def outpainter(folder):
    return In2Out(folder, settings=SETTINGS)


@pytest.mark.parametrize("num_frames", [1, 2, 12])
def test_every_frame_comes_once_at_the_size_of_the_canvas(outpainter, num_frames):
    frames = run(outpainter, noise(num_frames), NARROW)
    assert frames.shape == (num_frames, NARROW.height, NARROW.width, 3) and frames.dtype == np.uint8
    made = frames[:, NARROW.mask()[..., 0] == 1]
    assert made.std() > 1, "something is made"


def test_a_window_is_compiled_once_a_shape(outpainter, folder):
    run(outpainter, noise(12), NARROW)
    compiled = outpainter._complete._cache_size()
    run(outpainter, noise(40), NARROW)
    assert outpainter._complete._cache_size() == compiled


def test_what_was_known_is_kept_in_both_passes(faked):
    """Each pass makes its own colour; the first one's is the second one's source."""
    seen = []

    def complete(frames, mask):
        seen.append((frames, mask))
        return np.full(frames.shape, {46: 50, 68: 200}[mask.shape[2]])

    source = noise(9)
    frames = run(faked(complete, seam="hard"), source, WIDE)
    half, _ = halve(WIDE)
    left = WIDE.left - half.left
    assert (half.height, half.width, left) == (24, 46, 10)
    expected = np.full((9, 24, 68, 3), 200)
    expected[:, :, left : left + 46] = 50
    np.testing.assert_array_equal(WIDE.paste(frames, source), WIDE.paste(expected, source))
    # The second pass is shown the first one's frames with the source in them, whole and in their places.
    shown, masks = next((frames, masks) for frames, masks in seen if masks.shape[1:] == (24, 68, 1))
    np.testing.assert_array_equal(masks[:, :, :left], 1)
    np.testing.assert_array_equal(masks[:, :, left : left + 46], 0)
    np.testing.assert_array_equal(shown[:3, :, WIDE.left : WIDE.left + 24], source[:3])
    assert (shown[:, :, left : WIDE.left] == 50).all()


@pytest.mark.parametrize(
    ("canvas", "settings", "sizes"),
    [
        (Canvas.from_pad(24, 24, 12, 0, 12, 0), {}, {(24, 48, 1)}),  # half of the width is unknown, and no more
        (Canvas.from_pad(24, 24, 12, 0, 14, 0), {}, {(24, 38, 1), (24, 50, 1)}),
        (Canvas.from_pad(24, 24, 0, 0, 0, 26), {}, {(38, 24, 1), (50, 24, 1)}),
        (Canvas.from_pad(24, 24, 12, 0, 14, 0), {"two_passes_above": 1}, {(24, 50, 1)}),
        (Canvas.from_pad(24, 24, 2, 0, 2, 0), {"two_passes_above": 0.1}, {(24, 26, 1), (24, 28, 1)}),
    ],
)
def test_wide_borders_take_two_passes(faked, canvas, settings, sizes):
    found = set()

    def complete(frames, mask):
        found.add(mask.shape[1:])
        return frames

    assert run(faked(complete, **settings), noise(5), canvas).shape == (5, canvas.height, canvas.width, 3)
    assert found == sizes


def test_colours_meet_at_the_border_unless_told_otherwise(faked):
    darker = lambda frames, mask: np.full(frames.shape, 100)  # noqa: E731
    source = np.full((3, 24, 24, 3), 140, np.uint8)
    matched = run(faked(darker), source, WIDE)
    assert (matched[:, :, WIDE.left - 1] == 140).all() and (matched[:, :, 0] < 105).all()
    assert (run(faked(darker, seam="hard"), source, WIDE) == 100)[:, :, : WIDE.left].all()


def test_the_network_sees_nothing_within_four_pixels_of_a_hole(faked):
    seen = []
    canvas = Canvas.from_pad(24, 24, 4, 0, 0, 0)
    masks = holes_of(canvas, 3)
    run(faked(lambda frames, mask: seen.append(mask) or frames), noise(3), canvas, masks)
    rows, columns = np.mgrid[:24, :28]
    hole = masks[1, ..., 0] * (columns >= 4)
    near = [(abs(rows - row) + abs(columns - column) <= 4) for row, column in np.argwhere(hole)]
    # The hole is wider; the border is not.
    np.testing.assert_array_equal(seen[0][1, ..., 0], np.any(near, axis=0) | (columns < 4))


@pytest.mark.parametrize(
    ("canvas", "seam"),
    [
        (Canvas.from_size(24, 24, 24, 24), "matched"),
        (NARROW, "hard"),
        (WIDE, "matched"),
        (Canvas.from_pad(48, 48, 12, 0, 0, 12), "matched"),
    ],
)
def test_what_a_mask_hides_is_not_looked_at(faked, canvas, seam):
    """Two sources that differ in their holes alone become the same video, in which the rest is as it was."""

    def complete(frames, mask):
        known = np.where(mask, 127, frames)
        return known[:, ::-1].mean(0, keepdims=True) + 0 * known

    shape = (canvas.source_height, canvas.source_width)
    masks = holes_of(canvas, 9)
    first, second = noise(9, *shape), noise(9, *shape, seed=1)
    second = np.where(masks[:, *canvas.box], second, first)
    outpainter = faked(complete, seam=seam)
    made = run(outpainter, first, canvas, masks)
    np.testing.assert_array_equal(made, run(outpainter, second, canvas, masks))
    hidden = masks[..., 0] == 1
    assert made[hidden].std() > 1, "something is made"
    pasted = canvas.paste(made, first, masks)
    np.testing.assert_array_equal(pasted[~hidden], canvas.paste(made, first)[~hidden])


def test_masks_of_the_border_alone_are_no_masks(faked):
    complete = lambda frames, mask: np.where(mask, 90, frames)  # noqa: E731
    border = np.repeat(WIDE.mask()[None], 5, axis=0)
    expected = run(faked(complete), noise(5), WIDE)
    np.testing.assert_array_equal(run(faked(complete), noise(5), WIDE, border), expected)


def test_holes_are_filled_in_the_first_pass_and_known_in_the_second(faked):
    seen = []

    def complete(frames, mask):
        seen.append((frames, mask))
        return np.full(frames.shape, {46: 50, 68: 200}[mask.shape[2]])

    masks = holes_of(WIDE, 3)
    made = run(faked(complete, seam="hard"), noise(3), WIDE, masks)
    holes = masks[:, *WIDE.box][..., 0] == 1
    assert (made[:, *WIDE.box][holes] == 50).all()
    (first, _), (second, mask) = seen
    assert first.shape[2] == 46 and not mask[:, *WIDE.box].any()
    assert (second[:, *WIDE.box][holes] == 50).all()


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 6), st.integers(1, 12))
def test_windows_cover_all_frames_with_constant_numbers(num_frames, neighbours, references, stride):
    windows = plan_inpainting_windows(num_frames, neighbours, references, stride)
    size = 2 * neighbours + 1
    assert {i for window in windows for i in window.local} == set(range(num_frames))
    assert len({(len(window.local), len(window.references)) for window in windows}) == 1
    starts = [window.local[0] for window in windows]
    assert all(0 < later - earlier <= neighbours for earlier, later in zip(starts, starts[1:], strict=False))
    for window in windows:
        assert list(window.local) == list(range(window.local[0], window.local[0] + size)) or num_frames <= size
        assert not set(window.references) & set(window.local)
        assert sorted(window.references) == list(window.references)
        assert all(0 <= i < num_frames for i in window.references)
        assert len(window.references) <= references
        assert window.references or num_frames <= size


def test_windows_of_a_long_video_and_of_short_ones():
    windows = plan_inpainting_windows(200, neighbours=5, references=4, reference_stride=10)
    assert windows[1].local == tuple(range(5, 16)) and windows[-1].local == tuple(range(189, 200))
    # 0 to 190 by tens: without 10, the middles of four parts of 19; spread over the whole video
    assert windows[1].references == (30, 80, 120, 170)
    assert [window.local for window in plan_inpainting_windows(1, 5, 8, 10)] == [(0, 0)]
    assert [window.local for window in plan_inpainting_windows(11, 5, 8, 10)] == [tuple(range(11))]
    # The only frames of the grid, 0 and 10, are local to the first window: another one stands in.
    assert [window.references for window in plan_inpainting_windows(12, 5, 8, 10)] == [(11,), (0,)]


@given(st.integers(2, 12), st.integers(1, 3))
def test_overlaps_are_a_running_average(num_frames, neighbours):
    windows = plan_inpainting_windows(num_frames, neighbours, 2, 4)
    rng = np.random.default_rng(num_frames)
    made = [(window.local, rng.normal(size=(len(window.local), 2, 2, 3))) for window in windows]
    expected = {}
    for local, frames in made:
        for index, frame in zip(local, frames, strict=True):
            expected[index] = 0.5 * expected[index] + 0.5 * frame if index in expected else frame
    found = np.concatenate(list(average(iter(made))))
    np.testing.assert_allclose(found, np.stack([expected[i] for i in range(num_frames)]), rtol=1e-12)


@given(*[st.integers(0, 40)] * 4, st.integers(1, 9), st.integers(1, 9))
def test_half_of_every_border_is_left_for_the_second_pass(left, top, right, bottom, height, width):
    canvas = Canvas.from_pad(
        height, width, left, top, right + (width + left + right) % 2, bottom + (height + top + bottom) % 2
    )
    half, rest = halve(canvas)
    assert (half.source_height, half.source_width) == (height, width)
    assert (rest.source_height, rest.source_width) == (half.height, half.width)
    assert (rest.height, rest.width) == (canvas.height, canvas.width)
    assert (rest.top + half.top, rest.left + half.left) == (canvas.top, canvas.left)
    for whole, part in (
        (canvas.left, half.left),
        (canvas.top, half.top),
        (canvas.width - canvas.left - width, half.width - half.left - width),
        (canvas.height - canvas.top - height, half.height - half.top - height),
    ):
        # half a pixel from a border that is odd, and one that the even side asks for
        assert abs(part - whole / 2) <= 1.5


class Mirror:
    """A network that gives back what it is shown, which it keeps."""

    size_multiple = (12, 20)

    def apply(self, variables, frames, *, num_local, local_only):
        self.shown = np.asarray(frames)
        return frames[:, :num_local] if local_only else frames, None


@pytest.mark.parametrize(("height", "width"), [(12, 20), (10, 26), (3, 2)])
def test_any_size_is_continued_by_mirror_images(height, width):
    frames, network = noise(4, height, width), Mirror()
    masks = np.zeros((4, height, width, 1), np.uint8)
    masks[:, :1] = masks[1, :, :1] = 1
    found = _complete(network, {}, frames, masks, num_local=3)
    expected = np.where(masks, 0, frames / 127.5 - 1)
    while expected.shape[1] % 12:  # as often as it takes; the released code does it once
        expected = np.concatenate([expected, expected[:, ::-1]], axis=1)[:, : -(-height // 12) * 12]
    while expected.shape[2] % 20:
        expected = np.concatenate([expected, expected[:, :, ::-1]], axis=2)[:, :, : -(-width // 20) * 20]
    np.testing.assert_allclose(network.shown[0], expected, atol=1e-6)
    # An unknown pixel is 0 to the network, so it comes back as mid grey.
    np.testing.assert_allclose(found, np.where(masks, 127.5, frames)[:3], atol=1e-4)


class Spy(FrameSource):
    """A source that draws its frames when they are asked for, and counts them."""

    def __init__(self, num_frames):
        self.height, self.width, self.fps = 24, 24, 24.0
        self._count, self.read, self.most = num_frames, 0, 0

    def __len__(self):
        return self._count

    def __getitem__(self, key):
        indices = range(self._count)[key] if isinstance(key, slice) else key
        self.read += len(indices)
        self.most = max(self.most, len(indices))
        grey = np.array([i % 256 for i in indices], np.uint8)
        return np.tile(grey[:, None, None, None], (1, self.height, self.width, 3))


@pytest.mark.parametrize("canvas", [NARROW, WIDE])
def test_memory_does_not_grow_with_the_video(faked, canvas):
    outpainter = faked(lambda frames, mask: frames)
    peaks = []
    for num_frames in (100, 300):
        source, count = Spy(num_frames), 0
        tracemalloc.start()
        for chunk in outpainter(source, canvas):
            # The chunks are the source's own frames, in order: what the network is shown, it gives back.
            shade = chunk[:, canvas.top, canvas.left, 0]
            np.testing.assert_array_equal(shade, np.arange(count, count + len(chunk)) % 256)
            count += len(chunk)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == num_frames
        assert source.most <= 3, "no more than a window at a time"
        # Once for the network, once for the seam; references of earlier windows are not read again and again.
        assert source.read < 3 * num_frames
    # A few numbers a frame may be kept; a frame is 1728 bytes, a wide canvas 4896.
    assert peaks[1] - peaks[0] < 200 * 1000


def test_it_computes_in_the_dtype_that_is_wanted(folder):
    outpainter = In2Out(folder, dtype="bfloat16")
    masks = np.zeros((2, 24, 24, 1), np.uint8)
    program = outpainter._complete.lower(outpainter._variables, noise(2), masks, num_local=2)
    assert "bf16" in program.as_text()


def test_what_it_cannot_work_with_is_named(folder, outpainter, tmp_path):
    with pytest.raises(ValueError, match="in2out needs a model folder: .*convert e2fgvi SOURCE FOLDER"):
        In2Out()
    save_model(tmp_path / "codec", PatchCodec(4), {})
    with pytest.raises(ValueError, match="codec holds a model of kind patch_codec: one of kind e2fgvi is needed"):
        In2Out(tmp_path / "codec")
    with pytest.raises(ValueError, match="'float8': float32 and bfloat16"):
        In2Out(folder, dtype="float8")
    with pytest.raises(ValueError, match="no setting steps: lines, neighbours"):
        In2Out(folder, settings={"steps": 3})
    with pytest.raises(ValueError, match="references is 0: a whole number above 0"):
        In2Out(folder, settings={"references": 0})
    with pytest.raises(ValueError, match="covers no pixel of the 24x24 that the model sees: more lines"):
        run(outpainter, noise(1, 4, 4), Canvas.from_pad(4, 4, 126, 126, 126, 126))


def test_known_pixels_are_those_that_hold_nothing_unknown():
    work = WorkCanvas(Canvas.from_pad(50, 40, 31, 4, 31, 2), lines=32, multiple=2)
    box = known_box(work)
    np.testing.assert_array_equal(box.mask(), work.mask)


def test_a_checkpoint_is_converted_and_outpaints(tmp_path):
    """From the authors' names and layouts to frames in a folder, known pixels exact, on the border and in holes."""
    module = E2FGVI(width=4, flow_width=4, hidden=8, depth=1, ffn_channels=1, deform_groups=2)
    wanted = targets(module, _torch_name)
    shapes = {name: jax.ShapeDtypeStruct(torch_shape(weight.shape), np.float32) for name, weight in wanted.items()}
    save_file(random_like(shapes), tmp_path / "e2fgvi.safetensors")
    assert ": e2fgvi, " in convert("e2fgvi", str(tmp_path / "e2fgvi.safetensors"), str(tmp_path / "model"))
    source = FrameSource.from_array(noise(3, 30, 40))
    canvas = Canvas.from_aspect(30, 40, 16 / 9)
    masks = holes_of(canvas, 3)
    made = Outpainter("in2out", tmp_path / "model", settings={"lines": 20, "seam": "hard"})
    made(source, tmp_path / "out", aspect=16 / 9, mask=masks[..., 0])
    written = FrameSource(tmp_path / "out")[:]
    blank = np.zeros_like(written)
    np.testing.assert_array_equal(np.where(masks, 0, written), canvas.paste(blank, source[:], masks))
    assert written[:, :, 0].std() > 1
    holes = masks[:, *canvas.box][..., 0] == 1
    assert (written[:, *canvas.box][holes] != source[:][holes]).mean() > 0.9
