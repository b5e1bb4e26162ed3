"""M3DDM's U-Net trained by flow matching, in minutes on two cores: velocity on a rectified flow, synthetic clips.

Pixels in patches of 4: the network is wider than a patch, so that it can predict the noise in the velocity.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.base()
    config.autoencoder.patch_size = 4
    config.model.update(
        latent_channels=48,
        block_out_channels=(64, 96),
        attention_levels=(False, True),
        layers_per_block=1,
        num_heads=4,
        norm_num_groups=8,
        cross_attention_dim=32,
        global_widths=(8, 8, 16, 16, 32),
        frame_embedding_dim=32,
    )
    config.diffusion.update(schedule="rectified_flow", prediction="velocity")
    config.data.update(
        num_frames=4, buckets=((32, 32),), global_frames=4, global_size=32, max_interval=4, num_threads=1
    )
    config.train.update(
        steps=300, batch_size=8, learning_rate=1e-3, warmup_steps=20, ema_decay=0.98, log_every=20, evaluate_every=0
    )
    config.sample.update(
        lines=64, num_frames=4, global_frames=4, global_size=32, solver="euler", steps=8, guidance_global=1.0
    )
    return config
