"""M3DDM at full size, 1,299,279,320 parameters, for a pod of 64 accelerators: 4 clips on each."""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.m3ddm()
    config.model.update(block_out_channels=(320, 640, 1280, 1280), norm_num_groups=32)
    config.train.update(steps=300_000, batch_size=256, warmup_steps=5000)
    config.mesh.update(data=-1, fsdp=8)
    return config
