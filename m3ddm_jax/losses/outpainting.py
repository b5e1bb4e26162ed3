"""IN2OUT's generator loss: reconstruction, flow, adversarial terms and features of the hierarchical discriminator.

Published (In2Out, arXiv 2508.00418, abstract): the loss for outpainting uses both local and global features of the
discriminator. From public code (E2FGVI): the L1 terms under the mask, beside it and on flows, and their weights. The
form and the weights of the feature terms are designs of this project.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from m3ddm_jax.losses.adversarial import Outputs, resize_mask, soft_labels, weighted_mean

_RAMPED = ("adv_global", "adv_local", "feat_global", "feat_local")


@dataclasses.dataclass(frozen=True)
class OutpaintingWeights:
    """Weights of the terms of the generator's loss, by the names that the functions here and `losses.adversarial` give.

    denoising: of a diffusion generator's own loss, which the caller computes; off.
    """

    hole: float = 1.0
    valid: float = 1.0
    flow: float = 1.0
    adv_global: float = 0.01
    adv_local: float = 0.01
    feat_global: float = 0.1
    feat_local: float = 0.1
    denoising: float = 0.0


def outpainting_loss(
    terms: Mapping[str, jax.Array], weights: OutpaintingWeights, ramp: float | jax.Array = 1.0
) -> jax.Array:
    """The weighted sum of terms by name, a scalar; ramp scales the adversarial and the feature terms.

    Terms of weight 0 may be absent, and cost nothing: nothing depends on them.
    Raises ValueError for terms that have a weight and are absent, or are unknown.
    """
    values = dataclasses.asdict(weights)
    missing = sorted(name for name, weight in values.items() if weight and name not in terms)
    unknown = sorted(terms.keys() - values.keys())
    if missing or unknown:
        raise ValueError(f"terms {missing} are missing, {unknown} unknown: those of {', '.join(values)} are accepted")
    used = [name for name, weight in values.items() if weight]
    scaled = (values[name] * terms[name] * (ramp if name in _RAMPED else 1.0) for name in used)
    return sum(scaled, jnp.zeros(()))


def reconstruction_terms(prediction: jax.Array, truth: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """{"hole", "valid"}: mean absolute error of the pixels to generate, and of the known ones; 0 where there are none.

    prediction, truth: [B, T, H, W, 3], the generator's own output, nothing pasted; mask: [B, T, H, W, 1], 1 = generate.
    """
    error = jnp.abs(prediction.astype(jnp.float32) - truth.astype(jnp.float32))
    mask = mask.astype(jnp.float32)
    return {"hole": weighted_mean(error, mask), "valid": weighted_mean(error, 1 - mask)}


def flow_term(flows: Sequence[jax.Array], targets: Sequence[jax.Array]) -> jax.Array:
    """Sum over flow fields, forward and backward ones say, of their mean absolute error; each pair of one shape.

    targets: what a frozen flow network finds on true frames; no gradient passes.
    """
    pairs = zip(flows, jax.lax.stop_gradient(tuple(targets)), strict=True)
    return sum(jnp.mean(jnp.abs(flow.astype(jnp.float32) - target.astype(jnp.float32))) for flow, target in pairs)


def feature_terms(
    real: Outputs, fake: Outputs, mask: jax.Array, *, floor: float = 0.2, dilation: int = 8
) -> dict[str, jax.Array]:
    """{"feat_global", "feat_local"}: mean absolute difference of the discriminator's features, averaged over levels.

    real, fake: the discriminator's outputs for true frames and for generated ones with the known pixels pasted, for
    the same mask [B, T, H, W, 1] and tubes. No gradient passes to the real ones. Global features count as much as
    their cell is masked, `floor` at the least, the mask grown by `dilation` pixels; local ones by their soft labels,
    and feat_local is 0 where no mask has a masked pixel.
    """
    real_features = jax.lax.stop_gradient(real["features"])
    grown = _dilate(mask.astype(jnp.float32), dilation)

    def mean_difference(name: str, weight_of) -> jax.Array:
        differences = [
            weighted_mean(jnp.abs(true.astype(jnp.float32) - made.astype(jnp.float32)), weight_of(*made.shape[-3:-1]))
            for true, made in zip(real_features[name], fake["features"][name], strict=True)
        ]
        return sum(differences) / len(differences)

    return {
        "feat_global": mean_difference("global", lambda *size: floor + (1 - floor) * resize_mask(grown, *size)),
        "feat_local": mean_difference("local", lambda *size: soft_labels(fake["local_mask"], *size)),
    }


def _dilate(mask: jax.Array, pixels: int) -> jax.Array:
    """The largest value within a square of 2 * pixels + 1 around each pixel of [B, T, H, W, 1]."""
    side = 2 * pixels + 1
    for window in ((1, 1, side, 1, 1), (1, 1, 1, side, 1)):
        mask = jax.lax.reduce_window(mask, -jnp.inf, jax.lax.max, window, (1,) * 5, "SAME")
    return mask
