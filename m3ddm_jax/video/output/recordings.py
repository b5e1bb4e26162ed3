"""Recordings joined to one file: where one ends and the next begins, sound may change its codec, which libav misses."""

from m3ddm_jax.video.container import open_container
from m3ddm_jax.video.source import FrameSource

Part = tuple[int, int]
_DESCRIPTION = 3 * 188  # bytes before a transport stream's first picture, in which its tracks are described


def split_recordings(source: FrameSource) -> list[Part | None]:
    """Parts of the file that must be opened one by one; [None], the whole, where all have sound of one kind."""
    positions = [piece.position for piece in source.clock.pieces[1:]]
    if not all(positions):
        return [None]
    starts = [0, *(max(0, position - _DESCRIPTION) for position in positions)]
    parts = list(zip(starts, [*starts[1:], 0], strict=True))
    return parts if len({_sound_of(source, part) for part in parts}) > 1 else [None]


def _sound_of(source: FrameSource, part: Part) -> tuple:
    with open_container(source.path, part) as container:
        codecs = [stream.codec_context for stream in container.streams.audio]
        return tuple((codec.name, codec.sample_rate, codec.channels) if codec else None for codec in codecs)
