"""kind <-> module: the one table that builds a model from plain hyper-parameters (config.json, configs)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from m3ddm_jax.checked import MOST, accepted_instead
from m3ddm_jax.models.asfn import ASFN, StyleDiscriminator
from m3ddm_jax.models.autoencoder import PatchCodec
from m3ddm_jax.models.deepfill import DeepFill
from m3ddm_jax.models.discriminator import HierarchicalDiscriminator
from m3ddm_jax.models.e2fgvi import E2FGVI
from m3ddm_jax.models.global_tokens import Evidence
from m3ddm_jax.models.globalpaint import GlobalPaintUNet
from m3ddm_jax.models.i3d import I3D
from m3ddm_jax.models.igfc import IGFC
from m3ddm_jax.models.kl_autoencoder import AutoencoderKL
from m3ddm_jax.models.lama import LaMa
from m3ddm_jax.models.lpips import LPIPS
from m3ddm_jax.models.migan import MIGAN
from m3ddm_jax.models.openclip import OpenCLIPVision
from m3ddm_jax.models.raft import RAFT
from m3ddm_jax.models.residual_unet import ResidualUNet
from m3ddm_jax.models.tubes import Tubes
from m3ddm_jax.models.unet3d import M3DDMUNet

# How a model is run, not what it is: never written to config.json.
_RUN_TIME_FIELDS = {"parent", "name", "dtype", "remat", "attention"}
# How many layers of a kind there may be, from and to: tracing a network takes time for each.
_COUNTS = {
    "layers_per_block": (1, 16),
    "layers": (1, 128),
    "depth": (1, 128),
    "downsamplings": (1, 8),
    "blocks": (1, 64),
    "transfer_blocks": (0, 32),
    "res_blocks": (0, 32),
}
MAX_PARAMETERS = 1 << 36
"""Parameters that a model may have."""


@dataclasses.dataclass(frozen=True)
class _Entry:
    module: type[nn.Module]
    example: Callable[[Any], tuple[tuple, dict]]
    """module -> the smallest arguments it can be initialised with."""


def _unet_example(module: M3DDMUNet) -> tuple[tuple, dict]:
    side = module.size_multiple
    latents = jnp.zeros((1, 1, side, side, module.latent_channels))
    global_latents = jnp.zeros((1, 1, 6, 6, module.latent_channels))
    mask = jnp.zeros((1, 1, side, side, 1))
    return (latents, mask, latents), {"timestep": 0, "fps": 0.0, "global_latents": global_latents}


def _globalpaint_example(module: GlobalPaintUNet) -> tuple[tuple, dict]:
    side = module.size_multiple
    latents = jnp.zeros((1, 1, side, side, module.latent_channels))
    conditions = {"timestep": 0, "fps": 1.0}
    if module.global_guidance:
        observed, places, times = jnp.ones((1, 1), bool), jnp.zeros((1, 1, 2)), jnp.zeros((1, 1))
        conditions["evidence"] = Evidence(jnp.zeros((1, 1, 1, module.patch_width)), places, observed, times)
    return (latents, jnp.zeros((1, 1, side, side, 1)), latents), conditions


def _openclip_example(module: OpenCLIPVision) -> tuple[tuple, dict]:
    return (jnp.zeros((1, module.image_size, module.image_size, 3)),), {}


def _codec_example(module: PatchCodec | AutoencoderKL) -> tuple[tuple, dict]:
    return (jnp.zeros((1, module.spatial_factor, module.spatial_factor, 3)),), {}


def _e2fgvi_example(module: E2FGVI) -> tuple[tuple, dict]:
    return (jnp.zeros((1, 2, *module.size_multiple, 3)),), {"num_local": 2}


def _discriminator_example(module: HierarchicalDiscriminator) -> tuple[tuple, dict]:
    side, corner = 2 * module.tube_size, jnp.zeros((1, 1, 2), jnp.int32)
    return (jnp.zeros((1, 1, side, side, 3)), jnp.zeros((1, 1, side, side, 1)), Tubes(corner, corner)), {}


def _igfc_example(module: IGFC) -> tuple[tuple, dict]:
    return (jnp.zeros((1, module.num_frames, 8, 8, 2)), jnp.zeros((1, module.num_frames, 8, 8, 1))), {}


def _picture_example(module: ASFN | DeepFill | LaMa | MIGAN) -> tuple[tuple, dict]:
    return (jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8, 8, 1))), {}


def _style_discriminator_example(module: StyleDiscriminator) -> tuple[tuple, dict]:
    return (jnp.zeros((1, 64, 64, 3)),), {}


def _raft_example(module: RAFT) -> tuple[tuple, dict]:
    images = jnp.zeros((1, 128, 128, 3))
    return (images, images), {"iterations": 1}


def _i3d_example(module: I3D) -> tuple[tuple, dict]:
    return (jnp.zeros((1, 9, 224, 224, 3)),), {}


def _residual_unet_example(module: ResidualUNet) -> tuple[tuple, dict]:
    return (jnp.zeros((1, module.multiple, module.multiple, module.in_channels)),), {}


def _lpips_example(module: LPIPS) -> tuple[tuple, dict]:
    images = jnp.zeros((1, 32, 32, 3))
    return (images, images), {}


_KINDS = {
    "m3ddm": _Entry(M3DDMUNet, _unet_example),
    "asfn": _Entry(ASFN, _picture_example),
    "autoencoder": _Entry(AutoencoderKL, _codec_example),
    "deepfill": _Entry(DeepFill, _picture_example),
    "discriminator": _Entry(HierarchicalDiscriminator, _discriminator_example),
    "e2fgvi": _Entry(E2FGVI, _e2fgvi_example),
    "globalpaint": _Entry(GlobalPaintUNet, _globalpaint_example),
    "i3d": _Entry(I3D, _i3d_example),
    "igfc": _Entry(IGFC, _igfc_example),
    "lama": _Entry(LaMa, _picture_example),
    "lpips": _Entry(LPIPS, _lpips_example),
    "migan": _Entry(MIGAN, _picture_example),
    "openclip": _Entry(OpenCLIPVision, _openclip_example),
    "patch_codec": _Entry(PatchCodec, _codec_example),
    "raft": _Entry(RAFT, _raft_example),
    "residual_unet": _Entry(ResidualUNet, _residual_unet_example),
    "style_discriminator": _Entry(StyleDiscriminator, _style_discriminator_example),
}


# Hyper-parameters of saved models that are gone -> the value they always had.
_REMOVED: dict[str, dict[str, Any]] = {"globalpaint": {"est_parallel": False, "est_positions": "rope"}}


def _fields(module: type[nn.Module]) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(module) if field.name not in {"parent", "name"}}


def build(kind: str, **hyper) -> nn.Module:
    """The module of a kind.

    Raises ValueError for an unknown kind or hyper-parameter and for a value that is none, naming what is accepted.
    """
    _check_kind(kind)
    module = _KINDS[kind].module
    unknown = sorted(set(hyper) - set(_fields(module)))
    if unknown:
        raise ValueError(f"model {kind!r} has no {', '.join(unknown)}: it takes {', '.join(_fields(module))}")
    for name, value in hyper.items():
        if name not in _RUN_TIME_FIELDS:
            least, most = _COUNTS.get(name, (1, MOST))
            if accepted := accepted_instead(_fields(module)[name].type, value, least, most):
                raise ValueError(f"{name} of model {kind!r} is {value!r:.100}: {accepted} is accepted")
    return module(**{name: tuple(value) if isinstance(value, list) else value for name, value in hyper.items()})


def defaults(kind: str) -> dict[str, Any]:
    """The hyper-parameters of a kind with their defaults, plain enough for a config, how it is run among them."""
    fields = _fields(_KINDS[kind].module)
    return {name: jnp.dtype(field.default).name if name == "dtype" else field.default for name, field in fields.items()}


def kinds(protocol: type) -> tuple[str, ...]:
    """The kinds whose modules follow a protocol of m3ddm_jax.types."""
    return tuple(sorted(kind for kind, entry in _KINDS.items() if isinstance(entry.module(), protocol)))


def without_removed(kind: str, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of a saved model without those that an earlier version had.

    Raises ValueError for an unknown kind, and where one of these has another value than it has now.
    """
    _check_kind(kind)
    removed = _REMOVED.get(kind, {})
    for name, only in removed.items():
        if hyper.get(name, only) != only:
            raise ValueError(f"model {kind!r} has {name}={hyper[name]!r}, which is not supported any more: {only!r} is")
    return {name: value for name, value in hyper.items() if name not in removed}


def _check_kind(kind: Any) -> None:
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"model kind {kind!r} is unknown: one of {', '.join(sorted(_KINDS))} is accepted")


def describe(module: nn.Module) -> tuple[str, dict[str, Any]]:
    """(kind, hyper-parameters) of a module, plain enough for JSON; `build` makes the same module of them again."""
    kind = next((kind for kind, entry in _KINDS.items() if type(module) is entry.module), None)
    if kind is None:
        raise ValueError(f"{type(module).__name__} is no registered model")
    names = [name for name in _fields(type(module)) if name not in _RUN_TIME_FIELDS]
    hyper = {name: getattr(module, name) for name in names}
    return kind, {name: list(value) if isinstance(value, tuple) else value for name, value in hyper.items()}


def init(module: nn.Module, key: jax.Array) -> Mapping[str, Any]:
    """Fresh variables of a registered module; traceable, so that it can run under jit with out_shardings."""
    kind, _ = describe(module)
    args, kwargs = _KINDS[kind].example(module)
    return module.init(key, *args, **kwargs)


def abstract_variables(module: nn.Module) -> Mapping[str, Any]:
    """Shapes and dtypes of a module's variables; nothing is computed.

    Raises ValueError for hyper-parameters that make no network together, or one above MAX_PARAMETERS.
    """
    return jax.tree.map(lambda leaf: leaf, _shapes(module))  # a tree of the caller's own


@functools.cache
def _shapes(module: nn.Module) -> Mapping[str, Any]:
    kind, _ = describe(module)
    try:
        shapes = jax.eval_shape(lambda: init(module, jax.random.key(0)))
    except Exception as error:  # hyper-parameters that do not fit together fail wherever they meet
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(f"{kind} of these hyper-parameters is no network: {type(error).__name__}, {reason}") from error
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    if count > MAX_PARAMETERS:
        raise ValueError(f"{kind} of these hyper-parameters has {count:,} parameters: {MAX_PARAMETERS:,} are accepted")
    return shapes
