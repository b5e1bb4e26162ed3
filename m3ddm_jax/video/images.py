"""Still images as frames: one file, or a folder of them in natural order of their names."""

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from m3ddm_jax.video.colour import Colour
from m3ddm_jax.video.container import Media, choose_video, name_of, open_container, read_facts
from m3ddm_jax.video.decoding import is_transparent
from m3ddm_jax.video.errors import reraise_as
from m3ddm_jax.video.reader import Reader
from m3ddm_jax.video.upright import Orientation, Upright

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class Image(NamedTuple):
    """An image: its frame, upright, in the pixel format of the file, and what its values mean."""

    frame: av.VideoFrame
    colour: Colour

    def to_rgb(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 [h,w,3], scaled to size (h, w) where one is given."""
        return self.colour.to_rgb(self.frame, VideoReformatter(), size)


def read_image(media: Media) -> Image:
    """An image file, upright; raises ValueError where it cannot be read."""
    name = name_of(media)
    with reraise_as(f"{name} is no readable image"), open_container(media) as container:
        stream, _ = choose_video(container, name)
        frame = next(container.decode(stream), None)
        if frame is None:
            raise ValueError(f"{name} is no readable image")
        location = read_facts(container, stream).chroma_location
        colour = Colour.of(frame, stream.codec_context, location)
        return Image(Upright((0, 0, 0, 0), Orientation.of(frame)).apply(frame), colour)


def list_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """The images of a folder, frame_2 before frame_10."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    return sorted(found, key=natural_key)


def natural_key(path: pathlib.Path) -> list:
    """Sort key under which the numbers in names count as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path.as_posix())]


class ImageReader(Reader):
    """Images of one size at a rate of frames per second."""

    def __init__(self, images: Sequence[Media], fps: float):
        self._images = images
        first = read_image(images[0])
        self.fps, self.timestamps = fps, np.arange(len(images)) / fps
        self.durations = np.full(len(images), 1 / fps)
        self.height, self.width = first.frame.height, first.frame.width
        self.colour, self.pixel_format = first.colour, first.frame.format.name
        self.bits = max(component.bits for component in first.frame.format.components)
        self.has_alpha = is_transparent(first.frame)

    def read(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        return self._image(index).to_rgb(size)

    def native(self, index: int) -> av.VideoFrame | None:
        frame, colour = self._image(index)
        return frame if frame.format.name == self.pixel_format and colour == self.colour else None

    def alpha(self, index: int) -> np.ndarray:
        frame = self._image(index).frame
        return VideoReformatter().reformat(frame, format="rgba").to_ndarray()[..., 3:]

    def _image(self, index: int) -> Image:
        image = read_image(self._images[index])
        if (image.frame.height, image.frame.width) != (self.height, self.width):
            found, first = f"{image.frame.width}x{image.frame.height}", name_of(self._images[0])
            name = name_of(self._images[index])
            raise ValueError(f"frames must all be {self.width}x{self.height} like {first}, {name} is {found}")
        return image
