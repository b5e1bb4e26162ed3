"""Adversarial losses of the hierarchical discriminator, on what `models.discriminator` returns; all are float32.

The hinge on the patch logits is that of public video inpainting code (E2FGVI, ProPainter). The clip logit's part, the
soft labels of the local branch and all weights are designs of this project: In2Out's abstract only says that there is a
global and a local goal.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce

Outputs = Mapping[str, Any]
"""What `models.discriminator.HierarchicalDiscriminator` returns."""


def hinge_real(logits: jax.Array) -> jax.Array:
    """What the discriminator pays for logits of real frames below 1: elementwise, float32."""
    return jax.nn.relu(1.0 - logits.astype(jnp.float32))


def hinge_fake(logits: jax.Array) -> jax.Array:
    """What the discriminator pays for logits of generated frames above -1: elementwise, float32."""
    return jax.nn.relu(1.0 + logits.astype(jnp.float32))


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean of values [..., C] under a weight [..., 1 or C] that broadcasts; 0 where the weight is 0 everywhere."""
    weight = jnp.broadcast_to(weight.astype(jnp.float32), values.shape)
    return jnp.sum(weight * values.astype(jnp.float32)) / jnp.maximum(jnp.sum(weight), 1e-6)


def resize_mask(mask: jax.Array, height: int, width: int) -> jax.Array:
    """Masked share of each cell: [..., H, W, 1] -> float32 [..., height, width, 1], cells of equal size."""
    rows, columns = _cell_means(mask.shape[-3], height), _cell_means(mask.shape[-2], width)
    return jnp.einsum("yh,...hwc,xw->...yxc", rows, mask.astype(jnp.float32), columns)


def soft_labels(mask: jax.Array, height: int, width: int) -> jax.Array:
    """How much each cell counts as generated: [..., H, W, 1], 1 = generate -> float32 [..., height, width, 1] in 0..1.

    The masked share of the cells, blurred over them (sigma 1); 0 where a cell has no masked pixel, so that copied
    pixels are never called fake.
    """
    share = resize_mask(mask, height, width)
    blurred = jnp.einsum("yh,...hwc,xw->...yxc", _gaussian(height), share, _gaussian(width))
    return jnp.where(share > 0, blurred, 0.0)


def discriminator_loss(
    real: Outputs,
    fake: Outputs,
    *,
    global_weight: float = 0.5,
    local_weight: float = 0.5,
    clip_weight: float = 0.5,
    known_weight: float = 0.1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, {"global", "local"}): the hinge of both branches, weighted, and each by itself; scalars.

    real, fake: of true frames, and of generated ones with the known pixels pasted, for the same masks and tubes.
    clip_weight: of the clip logit inside the global branch. known_weight: of calling known cells of generated frames
    real. Tubes without masked pixels count for nothing: the local part is 0 where no mask has any.
    """
    halves = {"global": _global_hinge(real, fake, clip_weight), "local": _local_hinge(real, fake, known_weight)}
    return global_weight * halves["global"] + local_weight * halves["local"], halves


def adversarial_terms(fake: Outputs, *, clip_weight: float = 0.5) -> dict[str, jax.Array]:
    """What the generator pays: {"adv_global", "adv_local"}, minus the mean logits, the local ones under their labels.

    fake: of generated frames with the known pixels pasted. adv_local is 0 where no mask has a masked pixel.
    """
    local_logits, labels, _ = _local(fake)
    return {
        "adv_global": -jnp.mean(fake["global"]) - clip_weight * jnp.mean(fake["clip"]),
        "adv_local": -weighted_mean(local_logits, labels),
    }


def r1_penalty(discriminate: Callable[[jax.Array], Outputs], frames: jax.Array) -> jax.Array:
    """Mean over clips of the squared gradient that the summed mean logits have at real frames [B, T, H, W, 3].

    Local logits count where there are tubes.
    An option for a discriminator that runs ahead. Source: Mescheder et al., Which training methods for GANs do actually
    converge?, 2018 (R1, without its factor gamma / 2).
    """

    def realness(frames: jax.Array) -> jax.Array:
        outputs = discriminate(frames)
        patches = (reduce(outputs[name], "b ... -> b", "mean") for name in ("global", "local") if outputs[name].size)
        return jnp.sum(sum(patches) + outputs["clip"])

    gradient = jax.grad(realness)(frames.astype(jnp.float32))
    return jnp.mean(reduce(jnp.square(gradient), "b ... -> b", "sum"))


def lecam_penalty(real: Outputs, fake: Outputs, anchors: Mapping[str, jax.Array]) -> jax.Array:
    """How far the patch logits have left those of the other side: a scalar, the sum over both branches.

    anchors: running means of the logits by the names of `logit_metrics`, "global_real" and the like. Real logits are
    held near the anchor of fake ones and the other way round, squared, from above and from below alone. An option for
    little data. Source: Tseng et al., Regularizing generative adversarial networks under limited data, 2021.
    """
    local_real, labels, counts = _local(real)
    everywhere = jnp.ones_like(real["global"])
    pairs = {
        "global": (real["global"], fake["global"], everywhere, everywhere),
        "local": (local_real, fake["local"], counts, labels),
    }
    penalty = jnp.zeros(())
    for name, (true, made, true_weight, made_weight) in pairs.items():
        above = jax.nn.relu(true - anchors[f"{name}_fake"])
        below = jax.nn.relu(anchors[f"{name}_real"] - made)
        penalty += weighted_mean(jnp.square(above), true_weight) + weighted_mean(jnp.square(below), made_weight)
    return penalty


def logit_metrics(real: Outputs, fake: Outputs) -> dict[str, jax.Array]:
    """What shows whether one side runs ahead: for "global" and "local", the mean logits `_real` and `_fake` and the
    share of logits on the right side of 0, `_accuracy`.

    Local ones are means under the labels, all 0 where no mask has a masked pixel.
    """
    local_real, labels, _ = _local(real)
    everywhere = jnp.ones_like(real["global"])
    pairs = {
        "global": (real["global"], fake["global"], everywhere),
        "local": (local_real, fake["local"], labels),
    }
    metrics = {}
    for name, (true, made, weight) in pairs.items():
        right = (weighted_mean(true > 0, weight) + weighted_mean(made < 0, weight)) / 2
        metrics[f"{name}_real"] = weighted_mean(true, weight)
        metrics[f"{name}_fake"] = weighted_mean(made, weight)
        metrics[f"{name}_accuracy"] = right
    return metrics


def _global_hinge(real: Outputs, fake: Outputs, clip_weight: float) -> jax.Array:
    patches = jnp.mean(hinge_real(real["global"])) + jnp.mean(hinge_fake(fake["global"]))
    clips = jnp.mean(hinge_real(real["clip"])) + jnp.mean(hinge_fake(fake["clip"]))
    return (patches + clip_weight * clips) / 2


def _local_hinge(real: Outputs, fake: Outputs, known_weight: float) -> jax.Array:
    logits, labels, counts = _local(fake)
    called_real = weighted_mean(hinge_real(real["local"]), counts)
    called_fake = weighted_mean(hinge_fake(logits), labels)
    known = weighted_mean((1 - labels) * hinge_real(logits), counts)
    return (called_real + called_fake + known_weight * known) / 2


def _local(outputs: Outputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(logits, labels, 1 for logits of tubes that have masked pixels and 0 for others), all [B, N, T, h, w, 1]."""
    logits, mask = outputs["local"], outputs["local_mask"]
    labels = soft_labels(mask, *logits.shape[-3:-1])
    masked = jnp.any(mask > 0, axis=(2, 3, 4, 5), keepdims=True)
    return logits, labels, jnp.broadcast_to(masked, logits.shape)


def _cell_means(length: int, cells: int) -> np.ndarray:
    """[cells, length], rows sum to 1: the mean over each cell of a line of pixels."""
    edges = np.linspace(0, length, cells + 1)
    start, end = np.maximum.outer(edges[:-1], np.arange(length)), np.minimum.outer(edges[1:], np.arange(1, length + 1))
    return (np.maximum(end - start, 0) * cells / length).astype(np.float32)


def _gaussian(cells: int) -> np.ndarray:
    """[cells, cells], rows sum to 1: a Gaussian of sigma 1 around each cell."""
    offsets = np.subtract.outer(np.arange(cells), np.arange(cells))
    weights = np.exp(-0.5 * offsets**2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
