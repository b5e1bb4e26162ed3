"""The model that comes with M3DDM here: pixels in patches of 8, small enough to be trained on a CPU in an hour.

Its clips come in equal parts from `clips`, a folder that data.prepare wrote, and from synthetic scenes.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.base()
    config.model.update(
        latent_channels=192,
        block_out_channels=(64, 64, 96),
        attention_levels=(False, True, True),
        layers_per_block=1,
        num_heads=4,
        norm_num_groups=8,
        cross_attention_dim=64,
        global_widths=(32, 32, 64, 64, 128),
        frame_embedding_dim=64,
    )
    # A patch has more numbers than the network has channels: it can predict the content, but not the noise.
    config.diffusion.update(prediction="x0", shift=0.125, known_weight=0.1, unknown="filled")
    config.data.update(
        sources=(
            {"kind": "shards", "path": "clips", "weight": 0.5},
            {"kind": "synthetic", "path": "", "weight": 0.5},
        ),
        num_frames=8,
        buckets=((128, 128), (96, 160), (160, 96)),
        global_frames=8,
        global_size=128,
        max_interval=6,
        num_threads=2,
    )
    # No guidance: the null conditions need not be learnt well.
    config.data.masks.update(all=0.1, all_keeps_frames=True)
    config.train.update(
        steps=771,
        batch_size=4,
        learning_rate=1e-3,
        warmup_steps=50,
        ema_decay=0.995,
        drop_local=0.0,
        log_every=20,
        save_every=250,
        evaluate_every=0,
        export_dtype="float16",
    )
    config.sample.update(
        num_frames=8,
        global_frames=8,
        global_size=128,
        steps=1,
        strength=0.6,
        noise_scale=0.2,
        guidance_local=1.0,
        guidance_global=1.0,
        clip=2.0,
    )
    return config
