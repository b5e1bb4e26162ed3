"""Files of open tabs: deleted with the last tab that uses them."""

import pytest

from m3ddm_jax.page.jobs import Progress
from m3ddm_jax.page.sessions import Sessions
from m3ddm_jax.page.target import Video


class FakeJob:
    def __init__(self, state):
        self.progress = Progress(state)


@pytest.fixture
def sessions(tmp_path):
    return Sessions(tmp_path / "results", tmp_path / "uploads")


@pytest.fixture
def upload(tmp_path):
    """Function (name) -> a video that was uploaded."""

    def make(name):
        path = tmp_path / "uploads" / name / f"{name}.mp4"
        path.parent.mkdir(parents=True)
        path.touch()
        return Video(path, None, "")

    return make


def test_an_upload_goes_with_the_last_tab_that_shows_it(sessions, upload):
    video, other = upload("one"), upload("two")
    for name in ("a", "b"):
        sessions.set_video(sessions[name], video)
    sessions.set_video(sessions["a"], other)
    assert video.path.exists()
    sessions.set_video(sessions["b"], other)
    assert not video.path.exists() and other.path.exists()


@pytest.mark.parametrize(("state", "kept"), [("running", True), ("waiting", True), ("done", False)])
def test_an_upload_stays_while_it_is_outpainted(sessions, upload, state, kept):
    video, session = upload("one"), sessions["a"]
    sessions.set_video(session, video)
    session.job, session.outpainted = FakeJob(state), video.path
    sessions.set_video(session, upload("two"))
    assert video.path.exists() == kept


def test_files_that_gradio_did_not_upload_stay(sessions, tmp_path):
    sample = tmp_path / "sample.mp4"
    sample.touch()
    sessions.set_video(sessions["a"], Video(sample, None, ""))
    sessions.end("a")
    assert sample.exists()


def test_the_end_of_the_last_tab_deletes_everything(sessions, upload, tmp_path):
    for name in ("a", "b"):
        sessions.set_video(sessions[name], upload(name))
        (sessions[name].empty_folder() / "out.mp4").touch()
    (tmp_path / "uploads" / "broken").touch()
    sessions.end("a")
    assert not (tmp_path / "results" / "a").exists() and (tmp_path / "uploads" / "b").exists()
    sessions.end("b")
    assert not list((tmp_path / "results").iterdir()) and not (tmp_path / "uploads").exists()
