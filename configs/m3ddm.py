"""M3DDM at full size, 1,299,279,320 parameters, for a pod of 64 accelerators: 4 clips of 16 frames at 256 on each.

From scratch, or from the model folder that train.init_from names; latents are computed in the step, or read where
data.sources names a folder of m3ddm_jax.precompute.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.m3ddm()
    config.train.update(steps=300_000, batch_size=256, warmup_steps=5000)
    config.mesh.fsdp = 8
    return config
