"""M3DDM at a quarter of the width, 84 million parameters, for one accelerator."""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.m3ddm()
    config.model.update(block_out_channels=(80, 160, 320, 320), norm_num_groups=16)
    config.train.update(steps=200_000, batch_size=32)
    return config
