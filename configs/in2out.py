"""IN2OUT: E2FGVI-HQ fine-tuned to outpaint against the hierarchical discriminator, for one accelerator of 80 GB.

Clips of 5 frames and 3 references at 432 x 240; the generator starts from the folder that `convert e2fgvi` made. The
paper tells neither sizes nor weights nor lengths: all numbers are this project's.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.adversarial()
    config.data.update(
        sources=({"kind": "shards", "path": "clips", "weight": 1.0},), buckets=((240, 432),), num_threads=16
    )
    config.train.update(init_from="models/e2fgvi")
    return config
