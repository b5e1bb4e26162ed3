"""IN2OUT's hierarchical discriminator: a global branch over whole clips, a local one over tubes.

Source: In2Out (arXiv 2508.00418). Published: adversarial training is split into a global and a local goal, one
hierarchical discriminator serves both, and an outpainting loss uses its local and global features. From public code:
the convolutions of the global branch are the T-PatchGAN of E2FGVI and ProPainter, whose weights fit. Everything else
here is a design of this project: the clip logit, the local branch, its tubes and its mask channel, the shared trunk.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from m3ddm_jax.models.layers import Dtype
from m3ddm_jax.models.tubes import Tubes, cut_tubes
from m3ddm_jax.models.weight_gradients import add_bias, convolve
from m3ddm_jax.types import Variables

_LOCAL_LEVELS = 4
_INIT = nn.initializers.lecun_normal()


def _unit(vector: jax.Array) -> jax.Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), 1e-12)


def _matrix(kernel: jax.Array) -> jax.Array:
    return rearrange(kernel, "... o -> (...) o")


def spectral_kernel(module: nn.Module, shape: tuple[int, ...]) -> jax.Array:
    """A parameter `kernel` [..., in, out] divided by its largest singular value, in float32; call it in nn.compact.

    The value is estimated from the unit vectors u [out] and v [... in] of the collection `spectral`, which only
    `power_iteration` changes; they count as constants.
    """
    kernel = module.param("kernel", _INIT, shape)
    matrix = _matrix(kernel)
    u = module.variable(
        "spectral", "u", lambda: _unit(jax.random.normal(module.make_rng("params"), matrix.shape[1:]))
    ).value
    v = module.variable("spectral", "v", lambda: _unit(matrix @ u)).value
    return kernel / jnp.einsum("i,io,o->", v, matrix, u, precision="highest")


def power_iteration(variables: Variables) -> Variables:
    """The variables with u and v of the collection `spectral` one step of the power iteration on.

    To be called once a discriminator step, before it applies the module; generator steps and evaluation take what is
    there. No gradient passes. Source: spectral normalization (Miyato et al., 2018) as PyTorch computes it.
    """
    params, spectral = flatten_dict(variables["params"]), flatten_dict(variables["spectral"])
    updated = {}
    for *scope, leaf in spectral:
        if leaf == "u":
            matrix = jax.lax.stop_gradient(_matrix(params[(*scope, "kernel")]))
            v = _unit(jnp.matmul(matrix, spectral[(*scope, "u")], precision="highest"))
            u = _unit(jnp.matmul(v, matrix, precision="highest"))
            updated |= {(*scope, "u"): u, (*scope, "v"): v}
    return {**variables, "spectral": unflatten_dict(updated)}


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolution of [B, T, H, W, C] with kernel [3, k, k, C, features], zero padding, stride and padding in space.

    A frame and its neighbours are stacked as channels of a convolution in space: on CPU the gradients of one over
    space and time take 20 times as long.
    """
    frames = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    stacked = jnp.concatenate([padded[:, tap : tap + frames] for tap in range(3)], axis=-1)
    stacked, kernel = rearrange(stacked, "b t h w c -> (b t) h w c"), rearrange(kernel, "t h w i o -> h w (t i) o")
    out = convolve(stacked, kernel, stride, ((padding, padding), (padding, padding)))
    return rearrange(out, "(b t) h w c -> b t h w c", t=frames)  # there may be no clips


class PatchConv(nn.Module):
    """Convolution [B, T, H, W, C] -> [B, T, h, w, features], with kernel 3 over frames and zero padding throughout.

    spectral: its kernel is divided by its largest singular value.
    """

    features: int
    kernel_size: int = 5
    stride: int = 2
    padding: int = 2
    spectral: bool = True
    use_bias: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (3, self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = spectral_kernel(self, shape) if self.spectral else self.param("kernel", _INIT, shape)
        x = _convolve(x.astype(self.dtype), kernel, self.stride, self.padding)
        return add_bias(x, self.param("bias", nn.initializers.zeros, (self.features,))) if self.use_bias else x


class SpectralDense(nn.Module):
    """Linear layer with bias and spectral normalization, in float32: [..., C] -> [..., features]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = spectral_kernel(self, (x.shape[-1], self.features))
        return x.astype(jnp.float32) @ kernel + self.param("bias", nn.initializers.zeros, (self.features,))


class GlobalBranch(nn.Module):
    """T-PatchGAN, and a logit of the whole clip: frames [B, T, H, W, 3] -> (logits, clip logits, features).

    logits: [B, T, h, w, 4 * width], every channel a logit, h and w about 1/64 of H and W. clip logits: [B].
    features: five levels [B, T, h, w, C] after their activation, C = width * (1, 2, 4, 4, 4), each half the size of
    the one before. The clip logit is a linear layer on the last level's mean.
    """

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
        x, features = frames, []
        for level, factor in enumerate((1, 2, 4, 4, 4)):
            # The first one pads less: so does the published code.
            padding = 1 if level == 0 else 2
            conv = PatchConv(factor * self.width, padding=padding, dtype=self.dtype, name=f"conv_{2 * level}")
            x = nn.leaky_relu(conv(x), 0.2)
            features.append(x)
        logits = PatchConv(4 * self.width, spectral=False, use_bias=True, dtype=self.dtype, name="conv_10")(x)
        pooled = x.astype(jnp.float32).mean(axis=(1, 2, 3))
        clip_logits = SpectralDense(1, name="clip_head")(pooled)
        return logits.astype(jnp.float32), rearrange(clip_logits, "b 1 -> b"), tuple(features)


class LocalBranch(nn.Module):
    """PatchGAN on tubes [N, T, S, S, 4], colours and mask -> (logits [N, T, S/16, S/16, 1], four levels of features).

    Features: [N, T, S/2, S/2, width] and so on after their activation, of widths width * (1, 2, 4, 4).
    """

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, tubes: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        x, features = tubes, []
        for level, factor in enumerate((1, 2, 4, 4)):
            x = nn.leaky_relu(PatchConv(factor * self.width, dtype=self.dtype, name=f"conv_{2 * level}")(x), 0.2)
            features.append(x)
        return _local_head(self.dtype)(x).astype(jnp.float32), tuple(features)


def _local_head(dtype: Dtype) -> PatchConv:
    return PatchConv(1, kernel_size=3, stride=1, padding=1, use_bias=True, dtype=dtype, name="local_head")


class HierarchicalDiscriminator(nn.Module):
    """Judges whole clips and tubes of them; variables are `params` and `spectral` (see `power_iteration`).

    Attributes:
      width: channels of each branch's first level; the others have 2 and 4 times as many.
      tube_size: side of a tube in pixels, a multiple of 16; zoomed tubes show twice as much.
      shared_trunk: no local branch: the local logits are a convolution on the fourth level of the global one, and the
        whole clip takes the place of the tubes.
      dtype: compute dtype; parameters, spectral norms and logits are float32.
    """

    width: int = 32
    tube_size: int = 64
    shared_trunk: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array, mask: jax.Array, tubes: Tubes | None = None) -> dict[str, Any]:
        """Logits, higher for what looks real, and the features they are made of.

        frames: [B, T, H, W, 3] in [-1, 1], generated ones with the known pixels pasted; mask: [B, T, H, W, 1],
        1 = generate; tubes: P + Q = N a clip, the same for real and generated frames; unused with shared_trunk, where
        N is 1 and the sizes of tubes below are those of the clip.

        Returns, float32 but for features:
          global: [B, T, h, w, 4 * width]; clip: [B]; local: [B, N, T, tube_size / 16, tube_size / 16, 1]
          features: {"global": five of [B, T, h, w, C], "local": four of [B, N, T, h, w, C]}, finest first
          local_mask: [B, N, T, tube_size, tube_size, 1], the mask as the local logits see it

        Raises ValueError for missing tubes, a tube_size that is no multiple of 16, and frames smaller than a tube.
        """
        mask = mask.astype(jnp.float32)
        logits, clip_logits, features = GlobalBranch(self.width, self.dtype, name="global_branch")(frames)
        if self.shared_trunk:
            local_mask = mask[:, None]
            local_features = tuple(level[:, None] for level in features[:_LOCAL_LEVELS])
            head = _local_head(self.dtype)(features[_LOCAL_LEVELS - 1])
            local_logits = head.astype(jnp.float32)[:, None]
        else:
            local_mask, local_logits, local_features = self._judge_tubes(frames, mask, tubes)
        return {
            "global": logits,
            "clip": clip_logits,
            "local": local_logits,
            "features": {"global": features, "local": local_features},
            "local_mask": local_mask,
        }

    def _judge_tubes(self, frames: jax.Array, mask: jax.Array, tubes: Tubes | None):
        if tubes is None:
            raise ValueError("the local branch needs tubes (models.tubes.sample_tubes); only shared_trunk does without")
        if self.tube_size % 2**_LOCAL_LEVELS:
            raise ValueError(f"tube_size is {self.tube_size}: multiples of {2**_LOCAL_LEVELS} are accepted")
        masked_frames = jnp.concatenate([frames, mask.astype(frames.dtype)], axis=-1)
        cut = cut_tubes(masked_frames, tubes, self.tube_size)
        branch = LocalBranch(self.width, self.dtype, name="local_branch")
        logits, features = branch(rearrange(cut, "b n t h w c -> (b n) t h w c"))
        logits, *features = (rearrange(x, "(b n) t h w c -> b n t h w c", b=len(frames)) for x in (logits, *features))
        return cut[..., 3:].astype(jnp.float32), logits, tuple(features)
