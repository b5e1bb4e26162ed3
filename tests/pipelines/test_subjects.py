import cv2
import numpy as np
import pytest

from m3ddm_jax.pipelines import subjects
from m3ddm_jax.pipelines.subjects import find_moving, find_people, find_singular

SIDE = 16
CHECKER = np.float32([[0, 255], [255, 0]]).repeat(8, 0).repeat(10, 1)[..., None]


@pytest.fixture
def scene():
    """A frame of noise with a square in it; what is known; the square's place."""
    rng = np.random.default_rng(0)
    frame = cv2.GaussianBlur(rng.uniform(0, 255, (96, 128, 3)).astype(np.float32), (0, 0), 1)
    known = np.zeros((96, 128), bool)
    known[:, SIDE:-SIDE] = True
    square = np.zeros_like(known)
    square[36:60, 52:76] = True
    return frame, known, square


@pytest.mark.parametrize("camera", [(0, 0), (3, 0), (-2, 5)])
def test_what_moves_unlike_the_camera_is_found(scene, camera):
    frame, known, square = scene
    flow = np.where(square[..., None], np.float32((camera[0] - 4, camera[1])), np.float32(camera))
    moving = find_moving(frame, known, flow)
    assert moving[square].all()
    far = cv2.dilate(square.astype(np.uint8), np.ones((17, 17), np.uint8)) == 0
    assert not moving[far].any()


def test_the_surroundings_of_the_border_tell_the_cameras_motion(scene):
    """A camera that follows somebody large: most of the frame stands still, what lies beyond the border moves."""
    frame, known, square = scene
    square = np.zeros_like(square)
    square[10:86, 36:92] = True
    flow = np.where(square[..., None], np.float32((0, 0)), np.float32((5, 0)))
    moving = find_moving(frame, known, flow)
    assert moving[square].mean() > 0.95 and not moving[:, SIDE : SIDE + 8].any()


def test_flat_places_are_not_said_to_move(scene):
    frame, known, square = scene
    flow = np.where(square[..., None], np.float32((4, 0)), np.float32((0, 0)))
    assert not find_moving(np.full_like(frame, 90), known, flow).any()


def test_where_nearly_all_moves_nothing_does(scene):
    """Then it was not the camera's motion that was found."""
    frame, known, _ = scene
    flow = np.zeros((96, 128, 2), np.float32)
    flow[:, SIDE + 12 : -SIDE - 12] = (4, 0)
    assert not find_moving(frame, known, flow).any()
    assert not find_moving(frame, np.zeros_like(known), flow).any()


def test_people_are_outlined(goldens):
    path = goldens.parent / "clips/SB_Running4.mp4"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    _, frame = cv2.VideoCapture(str(path)).read()
    frame = cv2.resize(frame, (240, 240), interpolation=cv2.INTER_AREA)[..., ::-1].astype(np.float32)
    known = np.zeros((240, 240), bool)
    known[:, 30:210] = True
    bodies, heads = find_people(frame, known)
    # His shirt and face, but neither sky nor trees.
    assert bodies[150:230, 105:135].mean() > 0.95 and heads[80:105, 108:130].mean() > 0.8
    assert not bodies[:40].any() and not bodies[120:180, 30:45].any()
    assert not heads[150:].any() and not (heads & ~bodies).any()


def test_scenes_without_people(scene):
    frame, known, _ = scene
    for image in (frame, np.zeros_like(frame), frame[:5, :7]):
        bodies, heads = find_people(image, known[: image.shape[0], : image.shape[1]])
        assert not bodies.any() and not heads.any()


def test_a_missing_detector_is_one_line(scene, monkeypatch, caplog):
    frame, known, _ = scene
    subjects._detectors.cache_clear()
    monkeypatch.delattr(subjects.cv2, "HOGDescriptor", raising=False)
    for _ in range(2):
        assert not find_people(frame, known).bodies.any()
    subjects._detectors.cache_clear()
    assert len(caplog.messages) == 1 and "pip install 'opencv-python-headless>=4.11,<5'" in caplog.text


def tiles():
    """A frame of repeated tiles, float32 [96, 128, 3], and what is known of it."""
    tile = np.random.default_rng(0).uniform(60, 190, (12, 16, 3)).astype(np.float32)
    known = np.zeros((96, 128), bool)
    known[:, SIDE:-SIDE] = True
    return np.tile(cv2.GaussianBlur(tile, (0, 0), 2), (8, 8, 1)), known


def test_singular_object_is_found_among_repeated_tiles():
    frame, known = tiles()
    frame[40:56, 56:76] = CHECKER
    singular = find_singular(frame, known)
    assert singular[44:52, 60:72].mean() > 0.8
    assert not singular[:24].any() and not singular[72:].any()


def test_object_that_appears_twice_is_not_singular():
    frame, known = tiles()
    frame[20:36, 40:60] = frame[60:76, 40:60] = CHECKER
    assert not find_singular(frame, known)[62:74, 42:58].any()


@pytest.mark.parametrize("case", ["tiles", "one colour", "nothing known", "narrower than a patch"])
def test_nothing_is_singular(case):
    frame, known = tiles()
    if case == "one colour":
        frame = np.full_like(frame, 90)
    elif case == "nothing known":
        known = np.zeros_like(known)
    elif case == "narrower than a patch":
        known = np.zeros_like(known)
        known[:, 60:64] = True
    assert not find_singular(frame, known).any()


def test_noise_is_hardly_singular(scene):
    frame, known, _ = scene
    assert find_singular(frame, known).mean() < 0.01
