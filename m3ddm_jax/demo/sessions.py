"""What the page keeps for each open tab until it is closed: a folder, the video and the job."""

import shutil
from pathlib import Path

from m3ddm_jax.demo.jobs import Job
from m3ddm_jax.demo.target import Video


class Session:
    """An open tab. folder: of its outputs. shared: a video of all tabs, which none deletes."""

    def __init__(self, folder: Path, shared: Path):
        self.folder, self._shared = folder, shared
        self.video: Video | None = None
        self.job: Job | None = None

    def set_video(self, video: Video | None) -> None:
        """Replace the video, and delete the upload before."""
        before, self.video = self.video, video
        if before is not None and before.path not in (self._shared, video and video.path):
            shutil.rmtree(before.path.parent, ignore_errors=True)  # Gradio gives each upload a folder

    def empty_folder(self) -> Path:
        """The folder, without the outputs of the job before."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self.folder

    def cancel(self) -> None:
        """Cancel the job, if there is one."""
        if self.job is not None:
            self.job.cancel()

    def end(self) -> None:
        """Cancel the job and delete all files."""
        self.cancel()
        if self.job is not None and self.job.progress.state == "stopping":
            self.job.finished.wait()
        self.set_video(None)
        shutil.rmtree(self.folder, ignore_errors=True)
