import json

import numpy as np
import pytest
import torch

from eval import protocol
from eval.features import PRESETS as PREPROCESSING
from eval.features import SAMPLINGS
from eval.image_metrics import SSIM_WINDOWS
from eval.protocol import PRESETS


def test_every_preset_is_complete_and_plain():
    assert {"motia", "fyc", "m3ddm_plus", "inpaint50", "isvi", "strict"} <= PRESETS.keys()
    for name, preset in PRESETS.items():
        described = preset.describe()
        assert described["name"] == name and described["version"] >= 1
        assert json.loads(json.dumps(described))["ssim"] in SSIM_WINDOWS
        assert preset.distance.sampling in SAMPLINGS and preset.distance.preprocessing in (*PREPROCESSING, "none")
        assert preset.psnr in ("video", "frame") and preset.average in ("clips", "frames")


@pytest.mark.parametrize(
    ("name", "boxes"),
    [
        ("strict", {"0.25": [32, 0, 224, 256], "0.66": [84, 0, 172, 256]}),
        ("motia", {"0.25": [32, 0, 224, 256], "0.66": [84, 0, 172, 256]}),
        ("m3ddm_plus", {"0.25": [32, 0, 224, 144]}),
        ("inpaint50", {"0.25": [54, 0, 378, 240], "0.66": [142, 0, 290, 240]}),
        ("fyc", {"0.25": [106, 0, 748, 480], "0.66": [281, 0, 573, 480]}),
    ],
)
def test_known_boxes_of_a_480p_clip(name, boxes):
    preset = PRESETS[name]
    size = preset.fit.target(480, 854)
    assert {region.name: region.boxes(*size)[0] for region in preset.regions} == boxes


def test_what_distinguishes_the_presets():
    """The facts of docs/evaluation.md that move numbers most."""
    assert PRESETS["motia"].distance.bn_epsilon == 1e-5 and PRESETS["strict"].distance.bn_epsilon == 1e-3
    assert PRESETS["fyc"].distance.lowest == 0 and PRESETS["motia"].distance.lowest == -1
    assert [name for name, preset in PRESETS.items() if not preset.paste] == ["fyc", "m3ddm_plus"]
    assert PRESETS["inpaint50"].ssim == "uniform65" and PRESETS["m3ddm_plus"].ssim == "uniform7"
    assert PRESETS["isvi_960x600"].fit.size == (600, 960) and not PRESETS["isvi_object"].regions


def test_which_frames_a_distance_takes():
    uniform, first, whole = (PRESETS[name].distance for name in ("motia", "fyc", "inpaint50"))
    assert uniform.frame_numbers(40).tolist() == np.rint(np.linspace(0, 39, 16)).tolist()
    assert first.frame_numbers(40).tolist() == list(range(16))
    assert whole.frame_numbers(11).tolist() == list(range(11))
    with pytest.raises(ValueError, match="15 frames, fvd needs 16"):
        uniform.frame_numbers(15)
    with pytest.raises(ValueError, match="8 frames, vfid needs 9"):
        whole.frame_numbers(8)


def test_the_way_to_the_size_can_be_chosen():
    assert protocol.get_preset("motia", "crop").fit.resize == "crop"
    assert protocol.get_preset("motia").describe()["fit"]["resize"] == "squash"
    with pytest.raises(ValueError, match="resize 'crop' to None"):
        protocol.get_preset("fyc", "crop")
    with pytest.raises(ValueError, match="preset 'papers': one of strict, motia, "):
        protocol.get_preset("papers")


def test_the_middle_square_is_resized_as_torchvision_does():
    frames = np.random.default_rng(0).integers(0, 256, (2, 30, 50, 3), dtype=np.uint8)
    found = protocol.middle_square(frames, 12)
    resized = torch.nn.functional.interpolate(
        torch.tensor(frames).permute(0, 3, 1, 2).float(), (12, 20), mode="bilinear", antialias=True
    )
    expected = resized.permute(0, 2, 3, 1).numpy()[:, :, 4:16]
    np.testing.assert_allclose(found, expected, atol=0.51)  # rounded to grey levels
    np.testing.assert_array_equal(protocol.middle_square(frames, 30), frames[:, :, 10:40])
