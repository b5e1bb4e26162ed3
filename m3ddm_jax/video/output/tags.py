"""Tags, dispositions and chapters: what of them is carried over, and what a container drops."""

import dataclasses
import io
from collections.abc import Sequence

import av
from av.stream import Disposition

from m3ddm_jax.video.output.codecs import Container
from m3ddm_jax.video.output.trial import add_tiny_stream, tiny_packets

# written by muxers and encoders about their own file
_TECHNICAL = {"encoder", "major_brand", "minor_version", "compatible_brands", "duration", "vendor_id", "alpha_mode"}
_TECHNICAL |= {"rotate", "stereo_mode", "handler_name", "encoding_tool", "location-eng", "variant_bitrate"}
_TECHNICAL_STARTS = ("bps", "number_of_", "_statistics", "duration-")
# ISO 639-2 has two codes for some languages; QuickTime knows one of them
_LANGUAGES = {
    "deu": "ger", "fra": "fre", "nld": "dut", "ell": "gre", "zho": "chi", "ces": "cze", "slk": "slo", "ron": "rum",
    "isl": "ice", "hye": "arm", "kat": "geo", "mkd": "mac", "sqi": "alb", "eus": "baq", "mya": "bur", "fas": "per",
    "bod": "tib", "cym": "wel", "msa": "may", "mri": "mao",
}  # fmt: skip
_LANGUAGES |= {other: code for code, other in _LANGUAGES.items()}
# about the track's content; others say how a file uses it
_KEPT = (
    Disposition.default | Disposition.forced | Disposition.dub | Disposition.original | Disposition.comment
    | Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.lyrics | Disposition.karaoke
)  # fmt: skip


@dataclasses.dataclass
class Label:
    """Tags and disposition of one stream. kind: video, audio or subtitle. name: as messages call it."""

    kind: str
    name: str
    metadata: dict[str, str]
    disposition: int

    @classmethod
    def of(cls, stream: av.stream.Stream, name: str) -> "Label":
        metadata = kept_tags(stream.metadata)
        if "name" in metadata:  # what MP4 calls the title of a track
            metadata.setdefault("title", metadata.pop("name"))
        if metadata.get("language") == "und":
            del metadata["language"]
        kept = _KEPT | Disposition.captions if stream.type == "subtitle" else _KEPT
        return cls(stream.type, name, metadata, int(stream.disposition & kept))

    def put_on(self, stream: av.stream.Stream, container: Container) -> None:
        """Sets the stream's tags and disposition."""
        stream.metadata.update(self.metadata)
        if "title" in self.metadata and container.format in ("mp4", "mov"):
            stream.metadata["handler_name"] = self.metadata["title"]  # where players look for it
        stream.disposition = self.disposition


def kept_tags(metadata: dict[str, str]) -> dict[str, str]:
    """Tags without those that muxers and encoders write about their own file; names of capitals become lower case."""
    return {
        (key.lower() if key.isupper() else key): value
        for key, value in metadata.items()
        if key.lower() not in _TECHNICAL and not key.lower().startswith(_TECHNICAL_STARTS)
    }


def fit_labels(
    container: Container, metadata: dict[str, str], chapters: Sequence[dict], labels: Sequence[Label], covers: bool
) -> tuple[dict[str, str], list[str]]:
    """(options of the muxer, what the container drops) for tags, chapters and labels; the first label is the picture's.

    A container of a few tiny streams is written to memory and read back, so that this is what the muxer does. Languages
    get their other ISO 639-2 code where that alone is held. covers: the container gets a cover picture; MP4 then holds
    no tags of its users' own.
    """
    options = {}
    lost = _dropped(container, options, metadata, chapters, labels)
    for label in labels:
        language = label.metadata.get("language")
        if f"language of {label.name}" in lost and language in _LANGUAGES:
            label.metadata["language"] = _LANGUAGES[language]
    if container.format in ("mp4", "mov") and not covers and any(item.startswith("tag ") for item in lost):
        options["movflags"] = "+use_metadata_tags"
    return options, _dropped(container, options, metadata, chapters, labels) if lost else []


def _dropped(
    container: Container, options: dict, metadata: dict, chapters: Sequence, labels: Sequence[Label]
) -> list[str]:
    """Names of the tags, dispositions and chapters that are not there when the container is read back."""
    file = io.BytesIO()
    with av.open(file, "w", format=container.format, options=options) as output:
        output.metadata.update(metadata)
        output.set_chapters(list(chapters))
        streams = [add_tiny_stream(output, container, label.kind) for label in labels]
        for stream, label in zip(streams, labels, strict=True):
            label.put_on(stream, container)
        for stream in streams:
            output.mux(tiny_packets(stream))
    file.seek(0)
    with av.open(file) as written:
        found = {key.lower() for key in written.metadata}
        found |= {"timecode"} & {key.lower() for stream in written.streams for key in stream.metadata}
        lost = [f"tag {key}" for key in metadata if key.lower() not in found]
        if len(written.chapters()) < len(chapters):
            lost.append("chapters")
        numbers = {"video": 0, "audio": 0, "subtitle": 0}
        for label in labels:
            same = [stream for stream in written.streams if stream.type == label.kind]
            lost += _lost_of(label, Label.of(same[numbers[label.kind]], label.name))
            numbers[label.kind] += 1
    return lost


def _lost_of(label: Label, written: Label) -> list[str]:
    found = {key.lower() for key in written.metadata}
    lost = [f"{key} of {label.name}" for key in label.metadata if key.lower() not in found and key != "creation_time"]
    missing = Disposition(label.disposition & ~written.disposition)
    return lost + [f"flag {flag.name} of {label.name}" for flag in missing]
