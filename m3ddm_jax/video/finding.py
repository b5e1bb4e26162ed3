"""Which files and folders of a folder are videos."""

import pathlib

from m3ddm_jax.video.images import IMAGE_SUFFIXES, natural_key

# Of files that are videos, most of which libav reads; `data.prepare` tries files of any other name too
VIDEO_SUFFIXES = frozenset(
    {
        ".3g2",
        ".3gp",
        ".apng",
        ".asf",
        ".avi",
        ".divx",
        ".dv",
        ".f4v",
        ".flv",
        ".gif",
        ".ivf",
        ".m1v",
        ".m2t",
        ".m2ts",
        ".m2v",
        ".m4v",
        ".mjpeg",
        ".mjpg",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpe",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".nut",
        ".ogm",
        ".ogv",
        ".qt",
        ".rm",
        ".rmvb",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    }
)


def find_videos(root: pathlib.Path, *, any_name: bool = False) -> list[pathlib.Path]:
    """Returns what counts as a video below `root`, in natural order; what is hidden by a dot is not seen.

    That is every file with a name like a video's, or with any_name every file that is no image, and every folder that
    holds images and no file with a name like a video's. Raises ValueError where there is none, and where `root` is not
    a folder.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    files = visible_files(root)
    videos = {path for path in files if path.suffix.lower() in VIDEO_SUFFIXES}
    images = {path for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    folders = {path.parent for path in images} - {path.parent for path in videos}
    found = folders | (set(files) - images if any_name else videos)
    if not found:
        raise ValueError(f"{root} holds no video file and no folder of images")
    return sorted(found, key=natural_key)


def visible_files(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files below a folder, without those that are hidden by a dot at their or a folder's name."""
    paths = (path for path in root.rglob("*") if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)]
