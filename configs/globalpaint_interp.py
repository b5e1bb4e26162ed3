"""GlobalPaint's interpolation model on Stable Diffusion 1.5: it fills the frames between two known ones.

It starts from the key-frame model that configs/globalpaint_key.py made in the workdir `key`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.as_interpolation(common.globalpaint(), key_frames="key/model")
    config.data.update(max_interval=15)  # key frames are at most so far apart
    config.train.update(steps=60_000, batch_size=256, learning_rate=5e-5, frozen_steps=0)
    config.mesh.fsdp = 8
    return config
