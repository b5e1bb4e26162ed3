"""ASFN: gradients that other frames lend to a hole, given the style of the frame around it; and its discriminator.

Source: Inertia-Guided Flow Completion and Style Fusion for Video Inpainting (Zhang et al., CVPR 2022).
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import reduce

from m3ddm_jax.models.discriminator import spectral_kernel
from m3ddm_jax.models.gated import ConvBlock, ResidualBlock, UpsampledConv
from m3ddm_jax.models.layers import Dtype
from m3ddm_jax.models.resampling import resize_bilinear
from m3ddm_jax.models.weight_gradients import convolve

_DOWNSCALE = 4  # of the feature maps
_VARIANCE_EPSILON = 1e-5
_FEWEST = 2  # cells that a deviation takes


def _statistics(features: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation [N, 1, 1, C] of features [N, h, w, C] where weight [N, h, w, 1] is 1; finite in any case."""
    count = reduce(weight, "n h w 1 -> n 1 1 1", "sum")
    mean = reduce(weight * features, "n h w c -> n 1 1 c", "sum") / jnp.maximum(count, 1)
    squares = reduce(weight * jnp.square(features - mean), "n h w c -> n 1 1 c", "sum")
    return mean, jnp.sqrt(squares / jnp.maximum(count - 1, 1) + _VARIANCE_EPSILON)


class FeatureTransfer(nn.Module):
    """Features [N, h, w, C] with a learned mix of both sides' statistics under the mask [N, h, w, 1]; same shape."""

    gated: bool = False
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, mask: jax.Array) -> jax.Array:
        known, hole = (_statistics(features.astype(jnp.float32), weight) for weight in (1 - mask, mask))
        mean, deviation = (jnp.concatenate(pair, axis=-1) for pair in zip(known, hole, strict=True))
        conv = partial(ConvBlock, features.shape[-1], 1, gated=self.gated, use_bias=self.use_bias, dtype=self.dtype)
        gamma, beta = conv(name="gammaGen")(deviation), conv(name="betaGen")(mean)
        hole_mean, hole_deviation = hole
        transferred = (features - hole_mean) / hole_deviation * gamma + beta
        return (mask * transferred + (1 - mask) * features).astype(self.dtype)


class TransferBlock(nn.Module):
    """Features [N, h, w, C] plus two transfers of style under the mask, a convolution behind each; same shape."""

    gated: bool = False
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, mask: jax.Array) -> jax.Array:
        options = {"gated": self.gated, "use_bias": self.use_bias, "dtype": self.dtype}
        x = features
        for part in (1, 2):
            x = FeatureTransfer(**options, name=f"t{part}")(x, mask)
            x = ConvBlock(features.shape[-1], **options, name=f"f{part}")(x)
        return features + x


class ASFN(nn.Module):
    """Adaptive style fusion of one field of colour gradients, that along x or that along y.

    Attributes:
      width: of the widest feature maps; those at a quarter of the size have four times as many channels.
      transfer_blocks, res_blocks: how many there are, one kind after the other.
      gated: whether convolutions are gated.
      pass_mask: whether the encoder sees the mask.
      skip_connection: whether the decoder sees the encoder's feature maps.
      signed: gradients are in [-1, 1]; otherwise in [0, 1].
      use_bias: of all convolutions but those of residual blocks, which have one.
      dtype: compute dtype; parameters, statistics and gradients are float32.
    """

    width: int = 64
    transfer_blocks: int = 2
    res_blocks: int = 2
    gated: bool = False
    pass_mask: bool = True
    skip_connection: bool = True
    signed: bool = True
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, gradients: jax.Array, mask: jax.Array) -> jax.Array:
        """Gradients [B, H, W, 3] of one style -> float32 [B, H, W, 3], all of it drawn anew.

        mask: [B, H, W, 1], 1 = lent by other frames. Where fewer than two cells of 4x4 pixels are known, or fewer than
        two are not, there is no style to give or nothing to give it to: that image comes back as it is.
        Raises ValueError for other shapes, and where H or W is no multiple of 4.
        """
        self._check(gradients.shape, mask.shape)
        options = {"gated": self.gated, "use_bias": self.use_bias, "dtype": self.dtype}
        conv = partial(ConvBlock, **options)
        up = partial(UpsampledConv, upsample=_doubled, conv=conv)
        c, gradients, mask = self.width, gradients.astype(jnp.float32), mask.astype(jnp.float32)

        x = jnp.concatenate([gradients, mask], axis=-1) if self.pass_mask else gradients
        x = conv(c, 5, reflect=True, name="encoder12_1")(x.astype(self.dtype))
        half = conv(2 * c, stride=2, name="encoder12_2")(x)
        quarter = conv(4 * c, stride=2, name="encoder24_1")(conv(2 * c, name="encoder24_0")(half))
        small_mask = mask[:, ::_DOWNSCALE, ::_DOWNSCALE]
        x = quarter
        for block in range(self.transfer_blocks):
            x = TransferBlock(**options, name=f"transferLayer_{block}")(x, small_mask)
        x = quarter + x
        for block in range(self.res_blocks):
            x = ResidualBlock(self.dtype, name=f"refineLayer_{block}")(x)
        x = conv(2 * c, name="decoder42_1")(up(2 * c, name="decoder42_0")(self._joined(x, quarter)))
        x = conv(c // 2, name="decoder21_1")(up(c, name="decoder21_0")(self._joined(x, half)))
        x = conv(3, activate=False, name="final")(x).astype(jnp.float32)
        out = jnp.tanh(x) if self.signed else nn.sigmoid(x)
        enough = jnp.minimum(*(reduce(side, "b h w 1 -> b 1 1 1", "sum") for side in (small_mask, 1 - small_mask)))
        return jnp.where(enough >= _FEWEST, out, gradients)

    def _joined(self, x: jax.Array, skipped: jax.Array) -> jax.Array:
        return jnp.concatenate([x, skipped], axis=-1) if self.skip_connection else x

    def _check(self, gradients: tuple[int, ...], mask: tuple[int, ...]) -> None:
        if len(gradients) != 4 or gradients[-1] != 3:
            raise ValueError(f"ASFN takes gradients [B, H, W, 3], not {list(gradients)}")
        if mask != (*gradients[:-1], 1):
            raise ValueError(f"the mask is {list(mask)}: {[*gradients[:-1], 1]}, as the gradients, is accepted")
        if any(side % _DOWNSCALE for side in gradients[1:3]):
            size = f"{gradients[2]}x{gradients[1]}"
            raise ValueError(f"gradients are {size}: sides that are multiples of {_DOWNSCALE} are accepted")


def _doubled(x: jax.Array) -> jax.Array:
    return resize_bilinear(x, 2 * x.shape[1], 2 * x.shape[2], align_corners=False)


class _SpectralConv(nn.Module):
    """5x5 convolution of stride 2, whose kernel is divided by its largest singular value; without bias."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = spectral_kernel(self, (5, 5, x.shape[-1], self.features))
        return convolve(x.astype(self.dtype), kernel, stride=2, padding=((2, 2), (2, 2)))


class StyleDiscriminator(nn.Module):
    """ASFN's discriminator: gradients [B, H, W, 3] -> logits float32 [B, H/64, W/64, 4 * width], rounded up.

    Every channel is a logit. Variables are `params` and `spectral`, as those of `models.discriminator`, whose
    `power_iteration` is to be called once a step here, too.

    Attributes:
      width: of the first layer.
      dtype: compute dtype; parameters, spectral norms and logits are float32.
    """

    width: int = 64
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, gradients: jax.Array) -> jax.Array:
        x = gradients
        for level, factor in enumerate((1, 2, 4, 4, 4)):
            x = nn.leaky_relu(_SpectralConv(factor * self.width, self.dtype, name=f"conv_{2 * level}")(x), 0.2)
        return _SpectralConv(4 * self.width, self.dtype, name="conv_10")(x).astype(jnp.float32)
