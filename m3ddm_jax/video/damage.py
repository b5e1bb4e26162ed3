"""Files that end before they should; libav reads them without a word."""

from m3ddm_jax.video.container import Media, read_bytes, size_of


def ends_early(media: Media, container_format: str) -> bool:
    """Whether a container's own end lies beyond the end of the file."""
    if container_format == "gif":
        return not read_bytes(media, 16, from_end=True).rstrip(b"\0").endswith(b";")
    if container_format != "matroska":
        return False
    head = read_bytes(media, 4096)
    # EBML: an identifier, then a length whose leading zeros say how many bytes it has; all ones mean "unknown"
    segment = head.find(b"\x18\x53\x80\x67")
    if segment < 0 or segment + 12 > len(head):
        return False
    width = 9 - head[segment + 4].bit_length()
    length = int.from_bytes(head[segment + 4 : segment + 4 + width]) & ((1 << 7 * width) - 1)
    return length != (1 << 7 * width) - 1 and segment + 4 + width + length > size_of(media)
