import cv2
import numpy as np
import pytest

from m3ddm_jax.video import FrameSink, FrameSource, MaskSource


def discs(num_masks, height=48, width=64):
    """White discs that move over black: uint8 [n,h,w,1], 0 or 1."""
    masks = np.zeros((num_masks, height, width, 1), np.uint8)
    for index, mask in enumerate(masks):
        cv2.circle(mask, (12 + 3 * index, 20), 8, 1, -1)
    return masks


def write(path, masks):
    with FrameSink(path, 24, *masks.shape[1:3]) as sink:
        sink.write(np.repeat(255 * masks, 3, -1))
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tiff"])
def test_an_image_serves_for_all_frames(tmp_path, suffix):
    mask = discs(1)[0]
    cv2.imwrite(str(tmp_path / f"mask{suffix}"), 255 * mask)
    masks = MaskSource(tmp_path / f"mask{suffix}", num_frames=5, fps=60)
    assert (masks.height, masks.width, masks.count) == (48, 64, 1)
    assert masks[1:4].dtype == np.uint8
    np.testing.assert_array_equal(masks[1:4], np.stack([mask] * 3))
    assert masks[4:9].shape == (1, 48, 64, 1), "slices end with the video"


@pytest.mark.parametrize("name", ["masks", "masks.mp4"])
def test_a_folder_or_video_has_a_mask_a_frame(tmp_path, name):
    masks = MaskSource(write(tmp_path / name, discs(7)), num_frames=7)
    assert masks.count == 7
    np.testing.assert_array_equal(masks[5:7], discs(7)[5:7])
    np.testing.assert_array_equal(masks[0:3], discs(7)[:3])


def test_a_folder_with_one_file_serves_for_all_frames(tmp_path):
    masks = MaskSource(write(tmp_path / "masks", discs(1)), num_frames=300)
    np.testing.assert_array_equal(masks[298:300], discs(1)[[0, 0]])


def test_half_is_white_in_any_channel(tmp_path):
    image = np.zeros((1, 2, 4, 3), np.uint8)
    image[0, 0] = np.array([0, 127, 128, 255])[:, None]
    image[0, 1] = [[0, 0, 127], [128, 0, 0], [0, 128, 0], [0, 0, 128]]
    with FrameSink(tmp_path / "masks", 24, 2, 4) as sink:
        sink.write(image)
    expected = [[0, 0, 1, 1], [0, 1, 1, 1]]
    np.testing.assert_array_equal(MaskSource(tmp_path / "masks", num_frames=1)[:1][0, ..., 0], expected)


def test_a_video_of_masks_is_sampled_as_its_video_is(tmp_path):
    path = write(tmp_path / "masks.mp4", discs(12))
    shown = FrameSource(path, fps=8)
    masks = MaskSource(path, num_frames=len(shown), fps=8)
    assert len(shown) == 4
    np.testing.assert_array_equal(masks[:4], discs(12)[::3])


@pytest.mark.parametrize("name", ["masks", "masks.mp4"])
def test_masks_are_one_or_as_many_as_the_frames(tmp_path, name):
    write(tmp_path / name, discs(5))
    for num_frames in (4, 6):
        with pytest.raises(ValueError, match=rf"{name} has 5 masks for {num_frames} frames: one for all or one for ea"):
            MaskSource(tmp_path / name, num_frames)


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="text.png is no readable"):
        MaskSource(tmp_path / "text.png", 3)
    with pytest.raises(ValueError, match="there is no file or folder .*none.png"):
        MaskSource(tmp_path / "none.png", 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no images"):
        MaskSource(tmp_path / "empty", 3)
    write(tmp_path / "sizes", discs(3))
    cv2.imwrite(str(tmp_path / "sizes" / "000002.png"), np.zeros((10, 10), np.uint8))
    masks = MaskSource(tmp_path / "sizes", 3)
    with pytest.raises(ValueError, match="must all be 64x48 .* 000002.png is 10x10|000002.png is 10x10"):
        masks[2:3]
