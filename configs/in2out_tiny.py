"""IN2OUT in minutes on two cores: a slim E2FGVI from random weights, 3 frames and 1 reference of 48 x 72 pixels."""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.adversarial()
    config.model.update(
        width=8,
        flow_width=4,
        hidden=32,
        depth=2,
        num_heads=2,
        window=(2, 3),
        ffn_channels=4,
        deform_groups=4,
        dtype="float32",
        remat="none",
    )
    config.discriminator.update(width=8, tube_size=16, dtype="float32")
    # From random weights there is no flow network that could tell what the flow is.
    config.adversarial.weights.update(flow=0.0)
    config.adversarial.update(
        plain_tubes=3, zoomed_tubes=1, discriminator_warmup=20, ramp_steps=100, guard_steps=100, learning_rate=3e-4
    )
    config.data.update(num_frames=3, references=1, buckets=((48, 72),), num_threads=1)
    config.train.update(
        steps=200,
        batch_size=4,
        learning_rate=1e-3,
        decay_at=0,
        ema_decay=0.99,
        log_every=20,
        save_every=100,
        evaluate_every=100,
    )
    config.variants = variants()
    return config


def variants() -> ConfigDict:
    """The parts of the adversarial goal, one after the other; the config itself has all of them."""
    off = {"adv_local": 0.0, "feat_local": 0.0, "feat_global": 0.0}
    return ConfigDict(
        {
            "B": {"adversarial": {"clip_weight": 0.0, "weights": off}},
            "C": {"adversarial": {"weights": off}},
            "D": {"adversarial": {"weights": {"feat_local": 0.0, "feat_global": 0.0}}},
            "E": {"adversarial": {"weights": {"feat_global": 0.0}}},
            "F": {},
        }
    )
