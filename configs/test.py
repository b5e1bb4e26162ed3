"""The whole trainer in seconds: two levels, two frames of 32 x 32 pixels, synthetic clips."""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.base()
    config.model.update(
        latent_channels=192,
        block_out_channels=(16, 32),
        attention_levels=(False, False),  # the middle block has it
        layers_per_block=1,
        num_heads=2,
        norm_num_groups=4,
        cross_attention_dim=16,
        global_widths=(8, 8, 8, 16, 16),
        frame_embedding_dim=16,
        dtype="float32",
        remat="none",
    )
    config.data.update(
        num_frames=2, buckets=((32, 32),), global_frames=2, global_size=48, max_interval=4, num_threads=1
    )
    config.train.update(
        steps=4, batch_size=8, learning_rate=1e-3, warmup_steps=2, log_every=1, save_every=100, sample_every=0
    )
    config.sample.update(lines=64, num_frames=2, strides=(1,), steps=2)
    return config
