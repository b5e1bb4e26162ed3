"""M3DDM in seconds: two levels, two frames of 32 x 32 synthetic pixels. For tests and first steps.

It works on pixels in patches of 8; `--config=configs/m3ddm_tiny.py:FOLDER` in the latents of the KL autoencoder of a
model folder, as configs/m3ddm.py does.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(autoencoder: str | None = None) -> ConfigDict:
    config = common.base() if autoencoder is None else common.m3ddm()
    if autoencoder is None:
        config.model.latent_channels = 192
    else:
        config.autoencoder.folder = autoencoder
        config.model.update(dtype="float32", remat="none")
        config.data.update(sources=({"kind": "synthetic", "path": "", "weight": 1.0},))
    config.model.update(
        block_out_channels=(16, 32),
        attention_levels=(False, False),  # the middle block has it
        layers_per_block=1,
        num_heads=2,
        norm_num_groups=4,
        cross_attention_dim=16,
        global_widths=(8, 8, 8, 16, 16),
        frame_embedding_dim=16,
    )
    config.data.update(
        num_frames=2, buckets=((32, 32),), global_frames=2, global_size=48, max_interval=4, num_threads=1
    )
    config.train.update(
        steps=4, batch_size=8, learning_rate=1e-3, warmup_steps=2, log_every=1, save_every=100, evaluate_every=0
    )
    config.train.evaluate_metrics = ("ssim",)  # frames are too small and too few for the others
    config.sample.update(lines=64, num_frames=2, strides=(1,), steps=2)
    return config
