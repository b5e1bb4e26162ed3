import numpy as np
import pytest

from m3ddm_jax.pipelines import completion
from m3ddm_jax.pipelines.completion import PatchCompleter
from m3ddm_jax.pipelines.compositing import spread
from m3ddm_jax.pipelines.propagation import View
from m3ddm_jax.pipelines.subjects import People

HEIGHT, WIDTH, SIDE = 64, 96, 20


def key_of(frame, flow=None, mask=None):
    """A key frame and its unknown pixels, the sides by default."""
    if mask is None:
        mask = np.zeros((*frame.shape[:2], 1), bool)
        mask[:, :SIDE] = mask[:, -SIDE:] = True
    return View(np.where(mask, 0, frame).astype(np.float32), ~mask[..., 0], flow, np.zeros(2)), mask


def noise(seed=0, low=60, high=190):
    return np.random.default_rng(seed).uniform(low, high, (HEIGHT, WIDTH, 3)).astype(np.float32)


def detail(image):
    return np.abs(np.diff(image, axis=0)).mean()


def smooth_of(key, unknown):
    return spread(key.frame[None], unknown.astype(np.uint8))[0]


def test_texture_goes_on_and_known_pixels_stay():
    key, unknown = key_of(noise())
    made = PatchCompleter()(key, unknown)
    np.testing.assert_array_equal(made[key.real], key.frame[key.real])
    assert detail(made[:, :SIDE]) > 0.5 * detail(noise()) > 3 * detail(smooth_of(key, unknown)[:, :SIDE])
    np.testing.assert_array_equal(PatchCompleter()(key, unknown), made)
    assert (PatchCompleter(seed=1)(key, unknown) != made).any()


def test_colours_are_those_of_the_smooth_continuation():
    """Left dark, right bright: the completed sides keep to it."""
    frame = noise() + np.linspace(-50, 50, WIDTH, dtype=np.float32)[None, :, None]
    key, unknown = key_of(frame)
    made, smooth = PatchCompleter()(key, unknown), smooth_of(key, unknown)
    for side in (np.s_[:, :SIDE], np.s_[:, -SIDE:]):
        assert abs(made[side].mean() - smooth[side].mean()) < 4


@pytest.mark.parametrize("where", ["above", "around", "hole"])
def test_any_mask(where):
    mask = np.zeros((HEIGHT, WIDTH, 1), bool)
    if where == "above":
        mask[:16] = True
    elif where == "around":
        mask[:] = True
        mask[16:48, 20:76] = False
    else:
        mask[24:40, 40:56] = True
    key, unknown = key_of(noise(), mask=mask)
    made = PatchCompleter()(key, unknown)
    inside = unknown[1:, :, 0] & unknown[:-1, :, 0]
    roughness = [np.abs(np.diff(x, axis=0))[inside].mean() for x in (made, smooth_of(key, unknown), noise())]
    assert np.isfinite(made).all() and roughness[0] > 1.2 * roughness[1] and roughness[0] > 0.35 * roughness[2]
    np.testing.assert_array_equal(made[key.real], key.frame[key.real])


def test_what_moves_is_not_copied():
    """A bright square that moves unlike the rest, well inside of the known part."""
    frame, square = noise(high=120), np.zeros((HEIGHT, WIDTH), bool)
    square[20:44, 36:60] = True
    frame[square] += 130
    flow = np.where(square[..., None], np.float32((5, 0)), np.float32((0, 0)))
    made = PatchCompleter()(*key_of(frame, flow))
    assert made[:, :SIDE].max() < 150 and made[:, -SIDE:].max() < 150


def test_people_are_not_copied(monkeypatch):
    person = np.zeros((HEIGHT, WIDTH), bool)
    person[16:60, 34:62] = True
    monkeypatch.setattr(completion, "find_people", lambda frame, known: People(person & known, person & known))
    frame = noise(high=120)
    frame[person] += 130
    made = PatchCompleter()(*key_of(frame))
    assert made[:, :SIDE].max() < 150 and made[:, -SIDE:].max() < 150


def test_a_subject_that_the_border_cuts_goes_on_a_little(monkeypatch):
    """Bright as it is next to the border; its head is copied nowhere."""
    body = np.zeros((HEIGHT, WIDTH), bool)
    body[20:, 20:40] = True
    head = np.zeros_like(body)
    head[20:32, 24:36] = True
    monkeypatch.setattr(completion, "find_people", lambda frame, known: People(body & known, head & known))
    frame = noise(high=100)
    frame[body] += 70
    frame[head] = (0, 255, 0)
    made = PatchCompleter()(*key_of(frame))[:, :SIDE]
    assert made[44:60, -3:].mean() > 130
    assert (made[..., 1] - made[..., 0]).max() < 120


@pytest.mark.parametrize(
    "case", ["one colour", "black", "nothing real", "narrow", "tiny", "all unknown", "nothing unknown"]
)
def test_little_to_copy_is_continued_smoothly(case, caplog):
    frame = noise()
    mask = None
    if case in ("one colour", "black"):
        frame = np.full_like(frame, 130 if case == "one colour" else 0)
    elif case == "narrow":
        mask = np.ones((HEIGHT, WIDTH, 1), bool)
        mask[:, 48:51] = False
    elif case == "tiny":
        frame = frame[:3, :4]
        mask = np.ones((3, 4, 1), bool)
        mask[1, 1] = False
    elif case in ("all unknown", "nothing unknown"):
        mask = np.full((HEIGHT, WIDTH, 1), case == "all unknown")
    key, unknown = key_of(frame, mask=mask)
    if case == "nothing real":
        key = key._replace(real=np.zeros_like(key.real))
    completer = PatchCompleter()
    for _ in range(2):
        made = completer(key, unknown)
        np.testing.assert_allclose(made, np.where(unknown, smooth_of(key, unknown), key.frame), atol=1e-3)
    skipped = case in ("nothing real", "narrow", "tiny", "all unknown")
    assert len(caplog.messages) == skipped and ("completion skipped" in caplog.text) == skipped


def test_other_frames_are_copied_from():
    """Too little is seen in the key frame; another frame shows the texture, three columns further to the left."""
    mask = np.ones((HEIGHT, WIDTH, 1), bool)
    mask[:, 46:50] = False
    key, unknown = key_of(noise(), mask=mask)
    other = View(noise(), np.ones((HEIGHT, WIDTH), bool), None, np.float32((0, -3)))
    alone, helped = PatchCompleter()(key, unknown), PatchCompleter()(key, unknown, (other,))
    np.testing.assert_allclose(alone, np.where(unknown, smooth_of(key, unknown), key.frame), atol=1e-3)
    assert detail(helped[:, :40]) > 0.5 * detail(noise())
