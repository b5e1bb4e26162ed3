import json

import pytest

from m3ddm_jax.models import registry
from m3ddm_jax.models.autoencoder import AutoencoderKL, PatchCodec
from m3ddm_jax.models.discriminator import HierarchicalDiscriminator
from m3ddm_jax.models.globalpaint import GlobalPaintUNet
from m3ddm_jax.models.openclip import OpenCLIPVision
from m3ddm_jax.models.unet3d import M3DDMUNet

MODULES = [
    M3DDMUNet(block_out_channels=(8, 16), num_heads=2),
    AutoencoderKL((8, 16)),
    PatchCodec(4),
    HierarchicalDiscriminator(width=4, shared_trunk=True),
    GlobalPaintUNet(block_out_channels=(8, 16), num_heads=(2, 4)),
    OpenCLIPVision(width=16, layers=2, num_heads=2),
]


@pytest.mark.parametrize("module", MODULES)
def test_build_inverts_describe_through_json(module):
    kind, hyper = json.loads(json.dumps(registry.describe(module)))
    assert registry.build(kind, **hyper) == module


def test_run_time_choices_are_not_part_of_a_model():
    assert "dtype" not in registry.describe(M3DDMUNet(remat=True))[1]


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match="'unet9'.*m3ddm"):
        registry.build("unet9")
    with pytest.raises(ValueError, match="no width"):
        registry.build("m3ddm", width=3)
