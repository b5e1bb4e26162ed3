"""ISVI's style fusion in minutes on one core: slim networks, on synthetic frames of 64 x 64 pixels."""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.style()
    config.model.update(width=16, transfer_blocks=1, res_blocks=1)
    config.discriminator.update(width=8)
    config.data.update(buckets=((64, 64),), num_threads=1)
    config.train.update(
        steps=1000,
        learning_rate=1e-3,
        decay_every=0,
        ema_decay=0.99,
        save_every=500,
        evaluate_every=250,
        evaluate_batches=8,
    )
    return config
