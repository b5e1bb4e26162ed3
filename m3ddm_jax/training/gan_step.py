"""One update of a generator and of the hierarchical discriminator that judges it.

Source: In2Out (arXiv 2508.00418). That there are a global and a local goal, and a loss on features of both, is
published; the order of the updates is that of public video inpainting code; warm-up, ramp and guard are designs of this
project.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from m3ddm_jax.losses.adversarial import (
    Outputs,
    adversarial_terms,
    discriminator_loss,
    lecam_penalty,
    logit_metrics,
    r1_penalty,
)
from m3ddm_jax.losses.outpainting import OutpaintingWeights, feature_terms, outpainting_loss, reconstruction_terms
from m3ddm_jax.models.discriminator import power_iteration
from m3ddm_jax.models.tubes import Tubes, sample_tubes
from m3ddm_jax.training.ema import update_ema
from m3ddm_jax.training.encoding import to_unit_range
from m3ddm_jax.training.gan_state import GanState, Optimizers
from m3ddm_jax.training.generators import MakeGenerator
from m3ddm_jax.training.update import apply_update, joined
from m3ddm_jax.types import Variables, VideoBatch

Metrics = dict[str, jax.Array]

_CONFIDENT = 0.95
_ANCHOR_DECAY = 0.99
_FEATURES = ("feat_global", "feat_local")


@dataclasses.dataclass(frozen=True)
class AdversarialSettings:
    """How generator and discriminator are set against each other.

    weights: of the generator's terms. What only terms of weight 0 need is left out: without local ones the
      discriminator gets no tubes, and its local branch learns nothing.
    clip_weight: of the clip logit beside the patch logits; 0 leaves the T-PatchGAN.
    known_weight: of calling known cells of generated frames real.
    plain_tubes, zoomed_tubes: that the local branch judges of each clip.
    discriminator_warmup: updates of the discriminator alone, before the generator's first.
    ramp_steps: updates after those over which adversarial and feature terms come in.
    guard_steps: after so many updates in a row before which it got more than 95 % of the local logits right, the
      discriminator's learning rate is halved.
    r1: gamma of the R1 penalty; lecam: weight of LeCam regularization; 0: off.
    ema_decay: of the generator's average.

    Raises ValueError for numbers that are negative, and for guard_steps below 1.
    """

    weights: OutpaintingWeights = OutpaintingWeights()
    clip_weight: float = 0.5
    known_weight: float = 0.1
    plain_tubes: int = 6
    zoomed_tubes: int = 2
    discriminator_warmup: int = 2000
    ramp_steps: int = 5000
    guard_steps: int = 2000
    r1: float = 0.0
    lecam: float = 0.0
    ema_decay: float = dataclasses.field(kw_only=True)

    def __post_init__(self):
        numbers = {name: value for name, value in vars(self).items() if name != "weights"} | vars(self.weights)
        wrong = {name: value for name, value in numbers.items() if value < (1 if name == "guard_steps" else 0)}
        if wrong:
            raise ValueError(f"{wrong}: 0 or more is accepted, for guard_steps 1 or more")
        if self.judges_locally and not self.plain_tubes:
            raise ValueError("plain_tubes is 0: 1 or more is accepted where a local term has a weight")

    @property
    def judges_locally(self) -> bool:
        """Whether any term needs the local branch."""
        return self.weights.adv_local > 0 or self.weights.feat_local > 0


def ramp_at(step: jax.Array, settings: AdversarialSettings) -> jax.Array:
    """Factor of the adversarial and feature terms in the update that follows `step` earlier ones: 0 in the warm-up,
    then up to 1 in `ramp_steps` equal steps."""
    share = (step + 1 - settings.discriminator_warmup) / max(1, settings.ramp_steps)
    return jnp.clip(share, 0.0, 1.0).astype(jnp.float32)


def composite(made: jax.Array, truth: jax.Array, mask: jax.Array) -> jax.Array:
    """Generated frames with the known pixels pasted; all [B, T, H, W, C], mask 1 = generated."""
    return jnp.where(mask > 0, made, truth)


def guarded_rate(state: GanState, accuracy: jax.Array, guard_steps: int) -> tuple[jax.Array, jax.Array]:
    """(discriminator_rate, confident_steps) after an update before which the discriminator was right in this share of
    the local logits: the rate is halved, and the count begins anew, with the guard_steps-th in a row above 0.95."""
    count = jnp.where(accuracy > _CONFIDENT, state.confident_steps + 1, 0)
    halves = count >= guard_steps
    return jnp.where(halves, state.discriminator_rate / 2, state.discriminator_rate), jnp.where(halves, 0, count)


def make_gan_step(
    make_generator: MakeGenerator,
    discriminator: nn.Module,
    optimizers: Optimizers,
    *,
    num_local: int,
    settings: AdversarialSettings,
    spike_patience: int,
) -> Callable[[GanState, VideoBatch, Variables], tuple[GanState, Metrics]]:
    """The pure function (state, batch without clip_id, frozen variables) -> (state, metrics) for `jax.jit`.

    One forward pass of the generator serves both updates: first its own, then the discriminator's, which sees the same
    frames detached. discriminator: a `models.discriminator.HierarchicalDiscriminator`. num_local: the first frames of
    each clip, which follow one another in time; they are what is judged, while all frames are reconstructed.
    spike_patience: of `training.update.apply_update`.

    Metrics, float32: `loss` and each of its terms; `discriminator_loss` and its parts; those of `logit_metrics`;
    `feature_to_hole`, the norms' ratio of the gradients
    that the weighted feature and hole terms have at the generated pixels; `ramp`; `discriminator_rate`; those of
    `training.update.apply_update`.
    Raises ValueError, when it is traced, for clips of fewer than num_local frames, and for frames that are smaller than
    a tube or that the generator does not take.
    """
    side = discriminator.tube_size

    def train_step(state: GanState, batch: VideoBatch, frozen: Variables) -> tuple[GanState, Metrics]:
        if batch["video"].shape[1] < num_local:
            raise ValueError(f"clips have {batch['video'].shape[1]} frames: {num_local} or more are accepted")
        generator_key, tube_key = jax.random.split(jax.random.fold_in(state.rng, state.step))
        truth, mask = to_unit_range(batch["video"]), batch["mask"].astype(jnp.float32)
        local_truth, local_mask = truth[:, :num_local], mask[:, :num_local]
        tubes = _draw_tubes(tube_key, local_mask, side, settings)
        generator = make_generator(batch, frozen, generator_key)

        def generate(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            return generator(variables, truth, mask, num_local)

        def judge(params: Any, spectral: Any, frames: jax.Array) -> Outputs:
            return discriminator.apply({"params": params, "spectral": spectral}, frames, local_mask, tubes)

        ramp = ramp_at(state.step, settings)
        (made, own_terms), pull_back = jax.vjp(generate, state.params)
        at_pixels, at_own_terms, metrics = _generator_gradients(
            made,
            own_terms,
            truth,
            mask,
            functools.partial(judge, state.discriminator_params, state.spectral),
            num_local=num_local,
            settings=settings,
            ramp=ramp,
        )
        (gradients,) = pull_back((at_pixels, at_own_terms))
        updated, of_generator = apply_update(
            state,
            gradients,
            optimizers.generator,
            spike_patience=spike_patience,
            ema_decay=settings.ema_decay,
            begin=settings.discriminator_warmup,
        )

        fake = jax.lax.stop_gradient(composite(made[:, :num_local], local_truth, local_mask))
        updated, of_discriminator = _update_discriminator(
            updated, judge, local_truth, fake, optimizers.discriminator, settings, spike_patience
        )
        metrics |= {"ramp": ramp} | joined(of_generator, of_discriminator)
        return updated.replace(step=state.step + 1), metrics

    return train_step


def _draw_tubes(key: jax.Array, mask: jax.Array, side: int, settings: AdversarialSettings) -> Tubes:
    # No tubes are a local branch without input: nothing of it is computed.
    plain, zoomed = (settings.plain_tubes, settings.zoomed_tubes) if settings.judges_locally else (0, 0)
    return sample_tubes(key, mask, size=side, plain=plain, zoomed=zoomed)


def _generator_gradients(
    made: jax.Array,
    own_terms: Mapping[str, jax.Array],
    truth: jax.Array,
    mask: jax.Array,
    judge: Callable[[jax.Array], Outputs],
    *,
    num_local: int,
    settings: AdversarialSettings,
    ramp: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array], Metrics]:
    """Gradients of the generator's loss at the frames it made and at its own terms; and the loss with all terms."""
    weights = settings.weights
    local_truth, local_mask = truth[:, :num_local], mask[:, :num_local]

    def judged_terms(made: jax.Array) -> dict[str, jax.Array]:
        fake = judge(composite(made[:, :num_local], local_truth, local_mask))
        terms = adversarial_terms(fake, clip_weight=settings.clip_weight)
        if any(getattr(weights, name) for name in _FEATURES):
            terms |= feature_terms(judge(local_truth), fake, local_mask)
        return {name: term for name, term in terms.items() if getattr(weights, name)}

    reconstructed, pull_reconstruction = jax.vjp(lambda made: reconstruction_terms(made, truth, mask), made)
    judged, pull_judgement = jax.vjp(judged_terms, made)
    terms = {**reconstructed, **judged, **own_terms}
    loss, shares = jax.value_and_grad(outpainting_loss)(terms, weights, ramp)

    def at_pixels(pull_back: Callable, all_terms: Iterable[str], names: Iterable[str]) -> jax.Array:
        (gradient,) = pull_back({name: shares[name] * (name in names) for name in all_terms})
        return gradient

    from_hole = at_pixels(pull_reconstruction, reconstructed, ["hole"])
    total = from_hole + at_pixels(pull_reconstruction, reconstructed, ["valid"])
    total += at_pixels(pull_judgement, judged, judged.keys() - set(_FEATURES))
    metrics = {"loss": loss, **terms}
    if judged.keys() & set(_FEATURES):
        from_features = at_pixels(pull_judgement, judged, _FEATURES)
        total += from_features
        if weights.hole:
            of_hole = jnp.maximum(optax.tree.norm(from_hole), 1e-12)
            metrics["feature_to_hole"] = optax.tree.norm(from_features) / of_hole
    return total, {name: shares[name] for name in own_terms}, metrics


def _update_discriminator(
    state: GanState,
    judge: Callable[[Any, Any, jax.Array], Outputs],
    truth: jax.Array,
    fake: jax.Array,
    optimizer: optax.GradientTransformation,
    settings: AdversarialSettings,
    spike_patience: int,
) -> tuple[GanState, Metrics]:
    """The state with the discriminator one update on, and how it did before."""
    spectral = power_iteration({"params": state.discriminator_params, "spectral": state.spectral})["spectral"]

    def objective(params: Any) -> tuple[jax.Array, Metrics]:
        of_truth, of_fake = judge(params, spectral, truth), judge(params, spectral, fake)
        loss, halves = discriminator_loss(
            of_truth,
            of_fake,
            local_weight=0.5 if settings.judges_locally else 0.0,
            clip_weight=settings.clip_weight,
            known_weight=settings.known_weight,
        )
        metrics = {f"discriminator_{name}": half for name, half in halves.items()} | logit_metrics(of_truth, of_fake)
        if settings.r1:
            metrics["r1"] = r1_penalty(functools.partial(judge, params, spectral), truth)
            loss += settings.r1 / 2 * metrics["r1"]
        if settings.lecam:
            metrics["lecam"] = lecam_penalty(of_truth, of_fake, state.anchors)
            loss += settings.lecam * metrics["lecam"]
        return loss, metrics

    (loss, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(state.discriminator_params)
    rate, confident_steps = guarded_rate(state, metrics["local_accuracy"], settings.guard_steps)
    means = {name: metrics[name] for name in state.anchors}
    after = {
        "spectral": spectral,
        "discriminator_rate": rate,
        "confident_steps": confident_steps,
        "anchors": update_ema(state.anchors, means, state.step, _ANCHOR_DECAY),
    }
    state, of_update = apply_update(
        state,
        gradients,
        optimizer,
        spike_patience=spike_patience,
        network="discriminator_",
        rate=state.discriminator_rate,
        more=after,
    )
    return state, metrics | of_update | {"discriminator_loss": loss, "discriminator_rate": state.discriminator_rate}
