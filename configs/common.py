"""What every experiment shares; an experiment changes what is its own.

Sections are made from the dataclasses that they fill, with the defaults of these: a value stands here only where it is
another one, or where no dataclass has a default.
"""

import dataclasses
import inspect
from typing import Any

from ml_collections import ConfigDict

from data.masks import MaskSampler
from data.pipeline import make_batches
from m3ddm_jax.losses.outpainting import OutpaintingWeights
from m3ddm_jax.models import registry
from m3ddm_jax.pipelines.denoiser import SampleSettings
from m3ddm_jax.training.flow_step import FlowWeights
from m3ddm_jax.training.gan_step import AdversarialSettings
from m3ddm_jax.training.optim import AdamSettings
from m3ddm_jax.weights.m3ddm import PIPELINE


def section(kind: type, **changes: Any) -> ConfigDict:
    """A section with the defaults of a dataclass and changes of them; fields without a default are changes, or left
    out."""
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    plain = {name: value for name, value in fields.items() if isinstance(value, bool | int | float | str | tuple)}
    return ConfigDict(plain | changes)


def model(kind: str, **changes: Any) -> ConfigDict:
    """A section that describes a network: its kind and hyper-parameters, those of the published model by default."""
    return ConfigDict({"kind": kind, **registry.defaults(kind), **changes})


def base() -> ConfigDict:
    """For a diffusion model: sections model, autoencoder, diffusion, data, train, mesh, sample; with M3DDM's masks."""
    config = ConfigDict({"recipe": "diffusion"})
    config.model = model("m3ddm")
    # Either kind and hyper-parameters of a codec without weights, or the folder of a trained autoencoder.
    config.autoencoder = ConfigDict({"kind": "patch_codec", "patch_size": 8, "scale": 2.0})
    config.diffusion = diffusion()
    config.data = data()
    config.train = train()
    config.train.update(
        warmup_steps=1000,
        weight_decay=0.01,
        # Batch that learning rate and warm-up are meant for: at another one both have a factor, the root of how many
        # times larger it is; 0: none.
        base_batch_size=0,
        # A clip loses what is known of it, or its global frames: the null conditions of guidance.
        drop_local=0.1,
        drop_global=0.1,
    )
    config.train.optimizer = section(AdamSettings)
    # Devices an axis; -1: all that the others leave. Clips are split over data and fsdp, parameters over fsdp, products
    # of wide levels over tensor, frames over context (m3ddm alone).
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "context": 1})
    config.sample = sample()
    return config


def m3ddm() -> ConfigDict:
    """M3DDM's recipe in the latents of a KL-f8 autoencoder; widths, batch and mesh are the experiment's.

    Learning rate and length, which the paper leaves open, are those usual for latent diffusion from scratch.
    """
    config = base()
    # remat: activations kept for the backward pass: none (all of them), blocks, dots, offload (models.remat).
    # attention: auto, or a form by name: dense, by_head, splash, cudnn (models.attention).
    config.model.update(dtype="bfloat16", remat="blocks")
    config.autoencoder = ConfigDict({"folder": "autoencoder"})
    released = PIPELINE["diffusion"]
    config.diffusion.update({name: released[name] for name in ("schedule", "zero_terminal_snr", "prediction")})
    config.data.update(sources=({"kind": "shards", "path": "clips", "weight": 1.0},), num_threads=16)
    config.train.update(drop_local=0.0)  # the masks hide a quarter of the clips wholly already
    return config


def globalpaint() -> ConfigDict:
    """GlobalPaint's key-frame model in the latents of a KL-f8 autoencoder; batch and mesh are the experiment's.

    It starts from the folder that `convert sd-inpaint --into=globalpaint` made. The paper's body is not public: masks,
    rates and lengths are this project's.
    """
    config = m3ddm()
    config.stage = "key_frames"  # or "interpolation"
    config.model = model("globalpaint", dtype="bfloat16", remat="blocks")
    # The folder of a converted OpenCLIP tower; or kind, hyper-parameters and the seed of random weights, a stand-in.
    config.image_encoder = ConfigDict({"folder": "image_encoder"})
    config.diffusion.update(min_snr_gamma=5.0, known_weight=0.3)
    config.data.update(global_size=224, global_fit="pad", max_interval=30)
    config.data.masks.update(single=0.3, horizontal=0.275, vertical=0.275, four=0.15, all=0.0)
    config.train.update(init_from="models/globalpaint", warmup_steps=2000, drop_local=0.05)
    config.train.update(
        pretrained_rate=0.1,  # factor of the learning rate in pretrained layers
        frozen_steps=50_000,  # updates before they learn; queries of attention and the first convolution do at once
    )
    shared = {field.name: config.sample[field.name] for field in dataclasses.fields(SampleSettings)}
    config.sample = ConfigDict(shared)  # global_frames: of a shot
    config.sample.update(steps=25, guidance_local=1.0, guidance_global=2.5, guidance_interval=(0.4, 1.0))
    return config


def globalpaint_tiny() -> ConfigDict:
    """`globalpaint` from scratch in minutes on two cores: 4 frames of 64 x 64 pixels in patches of 8, and a vision
    tower of random weights, which stands in for a trained one: it tells patches apart, not what they mean."""
    config = globalpaint()
    config.model.update(
        latent_channels=192,
        block_out_channels=(32, 64),
        attention_levels=(True, False),  # the middle block has it
        layers_per_block=1,
        num_heads=(2, 2),
        norm_num_groups=4,
        text_dim=16,
        est_window=(4, 4, 4),
        num_global_tokens=8,
        global_tokens_dim=32,
        patch_width=64,
        extractor_width=64,
        extractor_heads=2,
        frame_tokens=4,
        extractor_depths=(1, 2),
        dtype="float32",
        remat="none",
    )
    config.autoencoder = base().autoencoder
    config.image_encoder = ConfigDict(
        {
            "kind": "openclip",
            "image_size": 64,
            "patch_size": 8,
            "width": 64,
            "layers": 3,
            "num_heads": 2,
            "mlp_width": 128,
            "seed": 0,
        }
    )
    config.diffusion.update(prediction="x0", min_snr_gamma=0.0)
    config.data.update(
        sources=({"kind": "synthetic", "path": "", "weight": 1.0},),
        num_frames=4,
        buckets=((64, 64),),
        global_frames=4,
        global_size=64,
        max_interval=6,
        num_threads=1,
    )
    config.train.update(
        init_from="",
        pretrained_rate=1.0,
        frozen_steps=0,
        steps=200,
        batch_size=4,
        learning_rate=1e-3,
        warmup_steps=20,
        ema_decay=0.99,
        log_every=20,
        save_every=100,
        evaluate_every=100,
    )
    config.sample.update(lines=64, global_frames=4, num_frames=4, steps=4, clip=2.0)
    return config


def as_interpolation(config: ConfigDict, key_frames: str) -> ConfigDict:
    """The config of GlobalPaint's interpolation model to that of its key-frame model, from whose folder it starts: the
    first and the last frame of a clip are known, or, in a tenth of all clips, any frames."""
    config.stage = "interpolation"
    config.data.masks.update(all_masked=0.0, ends_known=0.0, random_known=0.1, both_known=0.9)
    config.train.init_from = key_frames
    return config


def diffusion() -> ConfigDict:
    return ConfigDict(
        {
            "schedule": "cosine",
            "zero_terminal_snr": True,
            "shift": 1.0,  # below 1: more noise at every timestep
            "prediction": "v_prediction",
            "min_snr_gamma": 0.0,  # 0 weighs all timesteps alike, as a zero-terminal-SNR schedule needs it
            "unknown": "black",  # what the network sees of unknown pixels; "filled": the known ones, continued smoothly
            "known_weight": 1.0,  # of the error where latents are known
        }
    )


def data() -> ConfigDict:
    batches = inspect.signature(make_batches).parameters
    return ConfigDict(
        {
            # kind: shards (made by data.prepare or data.builders), webdataset (tar files), videos (a folder of them) or
            # synthetic; path; weight in the mixture.
            # Or all of the kind latents (made by m3ddm_jax.precompute with the rest of this section as it is here).
            # Optional: split (data.splits), "train" where it is left out.
            "sources": ({"kind": "synthetic", "path": "", "weight": 1.0},),
            # What is measured on: such sources, each with its split; empty: the split "validation" of those above.
            "validation": (),
            "num_frames": 16,
            "buckets": ((256, 256),),  # height x width of a batch, drawn for each step
            "global_frames": 16,
            "global_size": 256,
            # global_fit: "stretch", the known rectangle to a square; "pad": with its aspect, the rest is black.
            # references: further frames from anywhere in the video, after the clip's own.
            # num_threads: threads that load clips, in each of `workers` processes, or with 0 in the training process.
            **{name: batches[name].default for name in ("global_fit", "references", "num_threads", "workers")},
            "max_interval": 15,  # frames between two of a clip, drawn from 1 to this
            "masks": section(MaskSampler),
        }
    )


def train() -> ConfigDict:
    """What every recipe's section has; a recipe adds its own fields."""
    return ConfigDict(
        {
            "seed": 0,
            "init_from": "",  # model folder whose weights a new run starts from; empty: random ones
            "steps": 100_000,
            "batch_size": 64,  # clips of one update, over all devices
            "accumulate": 1,  # micro-batches a batch is worked off in
            "learning_rate": 1e-4,
            "clip_norm": 1.0,
            # Updates are skipped whose gradients' norm is not finite, or so many times its running mean; 0: none are.
            "spike_factor": 0.0,
            "spike_patience": 10,  # so many in a row: back to the newest checkpoint, and on with other clips
            "ema_decay": 0.9999,
            "log_every": 50,
            "save_every": 1000,
            "evaluate_every": 5000,  # to show what becomes of clips that are held out, and measure it; 0: never
            "evaluate_batches": 4,  # of such clips
            # In addition to PSNR and sharpness; those whose weights are not installed are left out.
            "evaluate_metrics": ("ssim", "lpips", "fvd"),
            "best_metric": "validation_psnr",  # whose best checkpoint stays in addition to the newest; empty: none
            "keep": 3,  # newest checkpoints
            "keep_period": 0,  # updates; checkpoints at multiples of it stay; 0: none
            "profile": "",  # folder for a profiler's trace of a run's updates 11 to 13; empty: none
            "export_dtype": "float32",  # of the exported parameters; float16 halves the folder
        }
    )


def sample() -> ConfigDict:
    """Exported with the model: how it outpaints (M3ddmSettings in m3ddm_jax.pipelines.m3ddm describes each field)."""
    return ConfigDict(PIPELINE["sample"])


def adversarial() -> ConfigDict:
    """An inpainting network's against the hierarchical discriminator: model, discriminator, adversarial, data, train
    and mesh, with IN2OUT's masks."""
    config = ConfigDict({"recipe": "adversarial"})
    config.model = model("e2fgvi", dtype="bfloat16", remat="blocks")
    config.discriminator = model("discriminator", dtype="bfloat16")
    config.adversarial = section(
        AdversarialSettings,
        weights=section(OutpaintingWeights),  # flow: requires the trained flow network of train.init_from
        learning_rate=1e-4,  # the discriminator's
        flow_rate=0.25,  # factor of the flow network's learning rate
        discriminator_from="",  # file of a T-PatchGAN in PyTorch's names; empty: random weights
    )
    config.data = data()
    config.data.update(num_frames=5, references=3, max_interval=1, global_frames=1, global_size=16)
    config.data.masks.update(
        horizontal=0.5,
        vertical=0.15,
        single=0.15,
        objects=1 / 9,  # a tenth of all
        random=0.0,
        all=0.0,
        min_ratio=0.1,
        max_ratio=0.7,
        multiple=4,
        all_masked=1.0,
        ends_known=0.0,
        random_known=0.0,
    )
    config.train = train()
    config.train.update(batch_size=8, learning_rate=5e-5, ema_decay=0.999)
    config.train.decay_at = 75_000  # updates after which a tenth of both learning rates is left; 0: never
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    return config


def adversarial_diffusion() -> ConfigDict:
    """A masked diffusion model's against the hierarchical discriminator, which judges the clean clip that one step
    tells: `adversarial` and the sections autoencoder, diffusion and sample of `m3ddm`, with its data."""
    config, trained = adversarial(), m3ddm()
    for section in ("model", "autoencoder", "diffusion", "data", "sample"):
        config[section] = trained[section]
    config.data.masks.update(all=0.0)  # frames that are unknown as a whole have no seam to judge
    config.adversarial.weights.update(hole=0.0, valid=0.0, flow=0.0, denoising=1.0)
    config.adversarial.max_timestep = 0.5  # share of the schedule that timesteps are drawn from
    config.train.drop_global = 0.1
    return config


def flow() -> ConfigDict:
    """For ISVI's flow completion: model, flow, data, train and mesh.

    Sizes, optimizer, length and weights of the loss are those of the same authors' Flow-Guided Transformer, whose
    flow completion is public; ISVI's are not. Masks, and what the coarse flows weigh, are this project's.
    """
    config = ConfigDict({"recipe": "flow"})
    config.model = model("igfc")
    config.flow = ConfigDict(
        {
            "weights": section(FlowWeights),
            # Model folder of the RAFT that estimates the flow of clips. Empty: clips come with it, as those of sources
            # of the kind motion do (data.synthetic.motion).
            "raft": "",
            "iterations": 20,  # of it
        }
    )
    config.data = data()
    config.data.update(
        sources=({"kind": "motion", "path": "", "weight": 1.0},),
        num_frames=8,  # model.interval * (model.num_frames - 1) + 2
        max_interval=1,
        global_frames=1,
        global_size=16,
    )
    config.data.masks.update(isvi_masks())
    config.train = train()
    config.train.update(steps=280_000, batch_size=4, ema_decay=0.999, evaluate_metrics=())
    config.train.decay_every = 120_000  # updates after each of which a tenth of the learning rate is left; 0: never
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    return config


def style() -> ConfigDict:
    """For ISVI's style fusion: model, discriminator, style, data, train and mesh.

    That there are a reconstruction and a hinge loss is published; all numbers are this project's.
    """
    config = ConfigDict({"recipe": "style"})
    config.model = model("asfn")
    config.discriminator = model("style_discriminator")
    config.style = ConfigDict(
        {
            "reconstruction": 1.0,
            "adversarial": 0.01,
            "learning_rate": 1e-4,  # the discriminator's
        }
    )
    config.data = data()
    config.data.update(num_frames=1, max_interval=1, global_frames=1, global_size=16)
    config.data.masks.update(isvi_masks())
    config.train = train()
    config.train.update(steps=200_000, batch_size=8, ema_decay=0.999, evaluate_metrics=())
    config.train.decay_every = 120_000
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    return config


def isvi_masks() -> dict[str, float]:
    """Borders and, for a quarter of all clips, objects in the frame; on all frames."""
    return {
        "objects": 0.25,
        "horizontal": 0.3,
        "vertical": 0.15,
        "four": 0.15,
        "single": 0.15,
        "random": 0.0,
        "all": 0.0,
        "min_ratio": 0.1,
        "max_ratio": 0.5,
        "all_masked": 1.0,
        "ends_known": 0.0,
        "random_known": 0.0,
    }
