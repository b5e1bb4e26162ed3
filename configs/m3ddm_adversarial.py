"""M3DDM of configs/m3ddm_small.py fine-tuned against IN2OUT's discriminator, an experiment of this project.

The discriminator judges the clean latents that one step tells from noisy ones, decoded to pixels; sampling stays as it
is. The model starts from the folder that train.init_from names.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.adversarial_diffusion()
    config.model.update(block_out_channels=(80, 160, 320, 320), norm_num_groups=16)
    config.train.update(steps=20_000, decay_at=15_000, init_from="model", learning_rate=1e-5)
    return config
