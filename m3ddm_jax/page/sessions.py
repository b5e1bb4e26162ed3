"""What the page keeps for each open tab until it is closed: the video, the job and a folder of its outputs."""

import shutil
from pathlib import Path

from m3ddm_jax.page.jobs import Job
from m3ddm_jax.page.target import Video


class Session:
    """An open tab. video: the one that is shown. job: the last one, of the upload `outpainted`."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.video: Video | None = None
        self.job: Job | None = None
        self.outpainted: Path | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the job waits or runs."""
        return self.job is not None and self.job.progress.state in ("waiting", "running", "stopping")

    @property
    def uploads(self) -> set[Path]:
        """Uploads that are shown or outpainted."""
        shown = {self.video.path} if self.video is not None else set()
        return shown | ({self.outpainted} if self.is_busy else set())

    def empty_folder(self) -> Path:
        """The folder of outputs, without those of the job before."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        return self._folder

    def cancel(self) -> None:
        """Cancel the job, if there is one."""
        if self.job is not None:
            self.job.cancel()

    def end(self) -> None:
        """Cancel the job, wait for it if it runs, and delete the outputs."""
        self.cancel()
        if self.job is not None and self.job.progress.state == "stopping":
            self.job.finished.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


class Sessions:
    """The open tabs, by Gradio's session hash. folder: of outputs. uploads: where Gradio puts what was dropped.

    Tabs that were given the same video share its file: it is deleted with the last of them.
    """

    def __init__(self, folder: Path, uploads: Path):
        self._folder, self._uploads = folder, uploads
        self._open: dict[str, Session] = {}

    def __getitem__(self, name: str) -> Session:
        return self._open.setdefault(name, Session(self._folder / name))

    def set_video(self, session: Session, video: Video | None) -> None:
        """Replace a tab's video; the one before is deleted if no tab uses it."""
        before, session.video = session.video, video
        if before is not None:
            self.delete_unused(before.path)

    def delete_unused(self, path: Path) -> None:
        """Delete an upload, if no tab uses it."""
        used = set().union(*(session.uploads for session in self._open.values()))
        if path not in used and self._uploads in path.parents:
            shutil.rmtree(path.parent, ignore_errors=True)  # Gradio gives each upload a folder

    def end(self, name: str) -> None:
        """End a tab: cancel its job, and delete its files."""
        session = self._open.pop(name, None)
        if session is not None:
            session.end()
            self.set_video(session, None)
        if not self._open:
            shutil.rmtree(self._uploads, ignore_errors=True)  # and what uploads that broke off have left
