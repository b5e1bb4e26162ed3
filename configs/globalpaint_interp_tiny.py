"""GlobalPaint's interpolation model in minutes on two cores.

It starts from the key-frame model that configs/globalpaint_key_tiny.py made in the workdir `key`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.as_interpolation(common.globalpaint_tiny(), key_frames="key/model")
    config.train.update(learning_rate=5e-4)
    return config
