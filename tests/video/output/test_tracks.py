"""Sound, subtitles, covers, fonts, tags and chapters of a source, in each container."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.subtitles.subtitle import SubtitleSet

from m3ddm_jax.video import FrameSource

MS = Fraction(1, 1000)
ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""
PGS = bytes.fromhex("16000b 0040 0030 10 0000 80 00 00 00 800000")  # a picture of nothing, and its end
CHAPTERS = [
    {"id": 1, "start": 0, "end": 500, "time_base": MS, "metadata": {"title": "One"}},
    {"id": 2, "start": 500, "end": 1000, "time_base": MS, "metadata": {"title": "Two"}},
]


def add_tone(container, codec, start=0.0, seconds=1.0, layout="stereo"):
    stream = container.add_stream(codec, rate=48000, layout=layout)

    def write():
        tone = np.sin(np.arange(round(48000 * seconds)) * 0.06).astype(np.float32) / 2
        samples = np.repeat(tone, stream.codec_context.channels)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = 48000, round(start * 48000), Fraction(1, 48000)
        container.mux([*stream.encode(frame), *stream.encode(None)])

    return stream, write


def add_text(container, codec):
    stream = container.add_stream(codec)
    stream.codec_context.subtitle_header = ASS_HEADER
    stream.codec_context.time_base = stream.time_base = MS

    def write():
        for start, text in ((100, b"Hello"), (600, b"{\\i1}world{\\i0}")):
            packet = stream.codec_context.encode_subtitle(
                SubtitleSet.create(b"0,0,Default,,0,0,0,," + text, 0, 300, start)
            )
            packet.time_base, packet.stream = MS, stream
            container.mux(packet)

    return stream, write


def add_picture(container, start=0.0, codec="libx264"):
    stream = container.add_stream(codec, rate=25, width=64, height=48)
    stream.codec_context.time_base = MS

    def write():
        for index in range(25):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.time_base = round(1000 * start) + 40 * index, MS
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

    return stream, write


def png():
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 16, 16, "rgb24", Fraction(1, 1)
    return b"".join(map(bytes, [*codec.encode(av.VideoFrame(16, 16, "rgb24")), *codec.encode(None)]))


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A Matroska file with two sounds, subtitles, a cover, a font, chapters and tags."""
    path = tmp_path_factory.mktemp("rich") / "rich.mkv"
    with av.open(str(path), "w") as container:
        picture, *writers = add_picture(container)
        picture.disposition = Disposition.default
        for add, codec, language, title, disposition in (
            (add_tone, "aac", "deu", "Deutsch", 0),
            (add_tone, "flac", "eng", "Comment", Disposition.default | Disposition.comment),
            (add_text, "subrip", "fra", "Signs", Disposition.forced),
        ):
            stream, write = add(container, codec)
            stream.metadata.update(language=language, title=title)
            stream.disposition = disposition
            writers.append(write)
        container.add_attachment("cover.png", "image/png", png())
        container.add_attachment("font.ttf", "font/ttf", b"glyphs")
        container.metadata.update(title="Film", artist="A", mytag="kept", creation_time="2020-01-02T03:04:05.000000Z")
        container.metadata["timecode"] = "01:00:00:00"
        container.set_chapters(CHAPTERS)
        container.start_encoding()
        for write in writers:
            write()
    return FrameSource(path)


def described(path):
    """(type, codec, language, title, disposition) of the tracks of a file, chapters, tags."""
    tracks = []
    with av.open(str(path)) as container:
        for stream in container.streams:
            if stream.type in ("video", "audio", "subtitle"):
                codec = stream.codec_context.codec.canonical_name
                title = stream.metadata.get("title", stream.metadata.get("name"))
                tracks.append((stream.type, codec, stream.metadata.get("language"), title, stream.disposition))
        chapters = [(float(c["start"] * c["time_base"]), c["metadata"].get("title")) for c in container.chapters()]
        tags = {key.lower(): value for key, value in container.metadata.items()}
        for stream in container.streams:
            tags |= {key: value for key, value in stream.metadata.items() if key == "timecode"}
    return tracks, chapters, tags


def texts(path):
    """(start in ms, text) of the subtitles of a file."""
    with av.open(str(path)) as container:
        stream, found = container.streams.subtitles[0], []
        for packet in container.demux(stream):
            lines = [line for line in (stream.codec_context.decode(packet) if packet.size else ()) if line.dialogue]
            found += [(round(float(packet.pts * packet.time_base) * 1000), line.dialogue.strip()) for line in lines]
    return found


DEFAULT, FORCED, COMMENT = Disposition.default, Disposition.forced, Disposition.comment


@pytest.mark.parametrize(
    ("suffix", "codecs", "notes"),
    [
        (".mkv", ("aac", "flac", "subrip", "png"), []),
        (
            ".mp4",
            ("aac", "flac", "mov_text", "png"),
            ["converted: subtitles 1 (fra, srt) to mov_text", "left out: attachment 1 (font.ttf), tag mytag"],
        ),
        (
            ".mov",
            ("aac", "aac", "mov_text"),
            [
                "converted: audio 2 (eng, flac) to aac, subtitles 1 (fra, srt) to mov_text",
                "left out: cover picture (png), attachment 1 (font.ttf)",
            ],
        ),
        (
            ".webm",
            ("opus", "opus", "webvtt"),
            [
                "converted: audio 1 (deu, aac) to opus, audio 2 (eng, flac) to opus, subtitles 1 (fra, srt) to webvtt",
                "left out: cover picture (png), attachment 1 (font.ttf)",
            ],
        ),
    ],
)  # fmt: skip
def test_each_track_is_kept_where_the_container_holds_it(tmp_path, rich, write_around, suffix, codecs, notes):
    path = tmp_path / f"out{suffix}"
    sink = write_around(rich, path)
    told = [note.removeprefix(f"out{suffix}: ") for note in sink.notes]
    flags = [note for note in told[-1:] if "flag comment" in note]
    assert [note.split(", flag")[0] for note in told] == notes or flags
    tracks, chapters, tags = described(path)
    picture, first, second, text, *cover = tracks
    assert [track[1] for track in tracks[1:]] == list(codecs)
    german, french = ("ger", "fra") if suffix == ".mov" else ("deu", "fra")
    assert first[2:4] == (german, "Deutsch") and second[2:4] == ("eng", "Comment")
    assert text[2:4] == (french, "Signs")
    assert (bool(first[4] & DEFAULT), bool(second[4] & DEFAULT)) == (False, True)
    assert chapters == [(0.0, "One"), (0.5, "Two")]
    for key, value in (("title", "Film"), ("artist", "A"), ("mytag", "kept"), ("timecode", "01:00:00:00")):
        assert tags.get(key) == (None if (key, suffix) == ("mytag", ".mp4") else value)
    assert tags["creation_time"] == "2020-01-02T03:04:05.000000Z"
    assert [start for start, _ in texts(path)] == [100, 600]
    assert [text for _, text in texts(path)][0] == b"Hello"
    assert all(track[4] & Disposition.attached_pic for track in cover)


def test_fonts_and_flags_stay_in_matroska(tmp_path, rich, write_around):
    write_around(rich, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert [stream.data for stream in container.streams if stream.type == "attachment"] == [b"glyphs"]
    tracks, _, _ = described(tmp_path / "out.mkv")
    assert tracks[2][4] == DEFAULT | COMMENT and tracks[3][4] == FORCED


def test_titles_of_mp4_are_kept(tmp_path, rich, write_around):
    """MP4 and Matroska call them by different names."""
    write_around(rich, tmp_path / "first.mp4")
    write_around(FrameSource(tmp_path / "first.mp4"), tmp_path / "second.mkv")
    assert [track[3] for track in described(tmp_path / "second.mkv")[0][1:4]] == ["Deutsch", "Comment", "Signs"]
    assert described(tmp_path / "second.mkv")[1] == [(0.0, "One"), (0.5, "Two")]
    assert texts(tmp_path / "second.mkv")[0][1] == b"Hello"


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_sound_before_the_picture_stays(tmp_path, write_around, suffix):
    with av.open(str(tmp_path / "late.mkv"), "w") as container:
        (_, picture), (_, sound) = add_picture(container, start=0.6), add_tone(container, "libopus", seconds=1.6)
        container.start_encoding()
        picture()
        sound()
    write_around(FrameSource(tmp_path / "late.mkv"), tmp_path / f"out{suffix}")
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        starts = {}
        for packet in container.demux():
            if packet.pts is not None:
                starts.setdefault(packet.stream.type, float(packet.pts * packet.time_base))
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        length = sum(frame.samples for frame in container.decode(audio=0)) / 48000
    assert starts["video"] - starts["audio"] == pytest.approx(0.6, abs=0.025)
    assert length == pytest.approx(1.6, abs=0.05)


def test_gaps_of_converted_sound_become_silence(tmp_path, write_around):
    with av.open(str(tmp_path / "gap.mkv"), "w") as container:
        _, picture = add_picture(container)
        stream, _ = add_tone(container, "pcm_s16le")
        container.start_encoding()
        picture()
        for start in (0.0, 0.7):
            tone = np.repeat(np.sin(np.arange(14400) * 0.06) * 9000, 2).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, round(start * 48000), Fraction(1, 48000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    write_around(FrameSource(tmp_path / "gap.mkv"), tmp_path / "out.webm")
    with av.open(str(tmp_path / "out.webm")) as container:
        level = np.concatenate([np.abs(frame.to_ndarray()).max(axis=0) for frame in container.decode(audio=0)])
    assert len(level) / 48000 == pytest.approx(1.0, abs=0.05)
    loud = [level[start : start + 4800].max() for start in (4800, 21600, 38400)]
    assert loud[0] > 0.1 and loud[1] < 0.01 and loud[2] > 0.1


@pytest.mark.parametrize("layout", ["mono", "5.1", "5.1(side)", "7.1"])
def test_layouts_that_an_encoder_lacks_are_adapted(tmp_path, write_around, layout):
    with av.open(str(tmp_path / "many.mkv"), "w") as container:
        (_, picture), (_, sound) = add_picture(container), add_tone(container, "flac", layout=layout)
        container.start_encoding()
        picture()
        sound()
    for suffix in (".webm", ".mov"):
        write_around(FrameSource(tmp_path / "many.mkv"), tmp_path / f"out{suffix}")
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            assert container.streams.audio[0].channels == av.AudioLayout(layout).nb_channels


def test_tracks_that_nothing_can_hold_are_named(tmp_path, write_around):
    """Bitmap subtitles in a text container, and a track without packets."""
    with av.open(str(tmp_path / "odd.mkv"), "w") as container:
        _, picture = add_picture(container)
        bitmaps = container.add_mux_stream("hdmv_pgs_subtitle")
        bitmaps.metadata["language"] = "eng"
        container.add_stream("aac", rate=48000)
        container.start_encoding()
        picture()
        packet = av.Packet(PGS)
        packet.pts = packet.dts = 0
        packet.time_base, packet.stream = MS, bitmaps
        container.mux(packet)
    sink = write_around(FrameSource(tmp_path / "odd.mkv"), tmp_path / "out.mp4")
    assert sink.notes == ["out.mp4: left out: subtitles 1 (eng, pgssub), audio 1 (aac)"]
    assert write_around(FrameSource(tmp_path / "odd.mkv"), tmp_path / "out.mkv").notes == [
        "out.mkv: left out: audio 1 (aac)"
    ]
    assert len(FrameSource(tmp_path / "out.mp4")) == 25
