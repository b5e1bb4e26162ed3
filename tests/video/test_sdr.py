import av
import numpy as np
import pytest

from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.sdr import HLG, PQ, hlg_scene_light, pq_light, pq_signal, sdr_signal, to_sdr, tone_map


def test_transfer_functions():
    """Values of ITU-R BT.2100 and BT.2408."""
    np.testing.assert_allclose(
        pq_light(np.array([0.0, 0.5081, 0.5806, 0.7518, 1.0])), [0, 100, 203, 1000, 10000], rtol=2e-3, atol=1e-6
    )
    np.testing.assert_allclose(pq_signal(np.array([100.0, 203.0, 1000.0])), [0.5081, 0.5806, 0.7518], atol=1e-3)
    np.testing.assert_allclose(hlg_scene_light(np.array([0.0, 0.5, 1.0])), [0, 1 / 12, 1], atol=1e-6)
    white = 1000 * hlg_scene_light(np.array(0.75)) ** 1.2
    assert white == pytest.approx(203, abs=1), "HLG's graphics white is that of PQ"


def test_tone_mapping_keeps_the_dark_and_ends_at_white():
    light = np.linspace(0, 1000, 2001)
    mapped = tone_map(light, 1000.0)
    np.testing.assert_allclose(mapped[light < 80], light[light < 80], atol=0.01)
    assert (np.diff(mapped) > 0).all() and mapped[-1] == pytest.approx(203, abs=0.1)


def test_grey_stays_grey_and_white_is_white():
    light = np.repeat(np.array([[0.0], [50.0], [203.0], [1000.0]]), 3, axis=1).astype(np.float32)
    signal = sdr_signal(light, 1000.0, np.eye(3))
    assert (signal == signal[:, :1]).all()
    assert signal[0, 0] == 0 and signal[-1, 0] == 255 and signal[1, 0] == round(255 * (50 / 203) ** (1 / 2.4))


def write_hdr(path, transfer, levels):
    """Grey bars of signal levels, in 10 bits of limited range."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=64, height=48)
        stream.pix_fmt, codec = "yuv420p10le", stream.codec_context
        codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc = 1, 9, 9, transfer
        frame = av.VideoFrame(64, 48, "yuv420p10le")
        luma = np.repeat(np.rint(64 + 876 * np.array(levels)), 64 // len(levels)).astype(np.uint16)
        for plane, values in zip(
            frame.planes, (luma, np.full(32, 512, np.uint16), np.full(32, 512, np.uint16)), strict=True
        ):
            rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
            rows[:, : plane.width] = values
            plane.update(rows.tobytes())
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return FrameSource(path)


@pytest.mark.parametrize(("transfer", "levels"), [(PQ, [0.0, 0.3, 0.5, 0.7518]), (HLG, [0.0, 0.3, 0.5, 1.0])])
def test_hdr_becomes_tagged_sdr(tmp_path, transfer, levels):
    source = write_hdr(tmp_path / "hdr.mkv", transfer, levels)
    shown = to_sdr(source)
    light = pq_light(np.array(levels)) if transfer == PQ else 1000 * hlg_scene_light(np.array(levels)) ** 1.2
    expected = 255 * (tone_map(light, 1000.0) / 203) ** (1 / 2.4)
    np.testing.assert_allclose(shown[0:1][0, 24, 8::16, 1], expected, atol=2)
    assert shown.notes[-1].startswith("HDR is converted to SDR") and shown.pixel_format is None
    assert (shown.colour.matrix, shown.colour.primaries, shown.colour.transfer) == (1, 1, 1)
    np.testing.assert_array_equal(shown.reopen()[:], shown[:])


def test_sdr_is_left_alone(tmp_path):
    source = write_hdr(tmp_path / "sdr.mkv", 1, [0.0, 1.0])
    shown = to_sdr(source)
    assert shown.notes == ["the source is not HDR: nothing is converted to SDR"]
    np.testing.assert_array_equal(shown[:], source[:])
