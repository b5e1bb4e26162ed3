"""What GlobalPaint's parts are worth, in minutes on two cores: scenes of which a frame, then a clip, then only the
whole video tells what is hidden (data.synthetic.toy_scenes). For m3ddm_jax.ablate.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.globalpaint_tiny()
    # A grid of 4 x 4 cells needs one level, and one window for a clip.
    config.model.update(
        block_out_channels=(32,),
        attention_levels=(True,),
        num_heads=(2,),
        norm_num_groups=8,
    )
    config.image_encoder.update(image_size=32)
    # One step tells the clean clip, so that what is measured is what is known of it and not how it is sampled.
    config.diffusion.update(schedule="cosine", zero_terminal_snr=True, shift=0.02, known_weight=0.1, unknown="filled")
    config.data.update(
        sources=({"kind": "synthetic", "path": "visits", "weight": 1.0},),
        buckets=((32, 32),),
        global_frames=8,
        global_size=32,
        max_interval=1,
    )
    config.data.masks.update(single=0.0, horizontal=1.0, vertical=0.0, four=0.0, random=0.0)
    config.data.masks.update(min_ratio=0.5, max_ratio=0.5, all_masked=1.0, ends_known=0.0, random_known=0.0)
    config.train.update(
        steps=900,
        batch_size=8,
        learning_rate=2e-3,
        drop_local=0.0,
        drop_global=0.0,
        log_every=100,
        save_every=450,
        evaluate_every=150,
        evaluate_batches=6,
    )
    config.sample.update(lines=32, global_frames=8, steps=1, guidance_global=1.0, guidance_interval=(0.0, 1.0))
    config.variants = ConfigDict(
        {
            "off": {"model": {"est": "off", "global_guidance": False}},
            "1d": {"model": {"est": "1d", "global_guidance": False}},
            "1d+3d": {"model": {"global_guidance": False}},
            "1d+3d+global": {},
        }
    )
    return config
