"""GlobalPaint's key-frame model on Stable Diffusion 1.5, 1,316,254,820 parameters, for a pod of 64 accelerators.

It starts from models/globalpaint (`convert sd-inpaint --into=globalpaint`). Larger pictures come last: a run of 40,000
updates that starts from this one's folder, with data.buckets of 512 pixels and train.frozen_steps 0.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.globalpaint()
    config.train.update(steps=150_000, batch_size=256)
    config.mesh.fsdp = 8
    return config
