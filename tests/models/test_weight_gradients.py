import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.measure.peak_memory import equations
from m3ddm_jax.models import registry, weight_gradients
from m3ddm_jax.models.spynet import SPyNet
from m3ddm_jax.parallel.mesh import make_mesh


def draw(*shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), dtype)


def convolution(x, kernel, stride, padding, **options):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def plain(name):
    """The same products as JAX differentiates them."""
    return {
        "matmul": lambda x, kernel: jnp.tensordot(x, kernel.astype(x.dtype), axes=1),
        "bias": lambda x, bias: x + bias.astype(x.dtype),
        "convolve": lambda x, kernel: convolution(x, kernel, 1, ((1, 1), (1, 1))),
        "strided": lambda x, kernel: convolution(x, kernel, 2, ((1, 1), (0, 1))),
        "dilated": lambda x, kernel: convolution(x, kernel, 2, ((3, 3), (2, 3)), rhs_dilation=(3, 3)),
        "grouped": lambda x, kernel: convolution(x, kernel, 1, ((1, 1), (1, 1)), feature_group_count=2),
    }[name]


CASES = {
    "matmul": (weight_gradients.matmul, (2, 3, 4), (4, 2, 5)),
    "bias": (weight_gradients.add_bias, (2, 3, 2, 5), (2, 5)),
    "convolve": (
        lambda x, kernel: weight_gradients.convolve(x, kernel, 1, ((1, 1), (1, 1))),
        (2, 6, 5, 4),
        (3, 3, 4, 7),
    ),
    "strided": (
        lambda x, kernel: weight_gradients.convolve(x, kernel, 2, ((1, 1), (0, 1))),
        (2, 6, 7, 4),
        (3, 2, 4, 7),
    ),
    "dilated": (
        lambda x, kernel: weight_gradients.convolve(x, kernel, 2, ((3, 3), (2, 3)), 3),
        (2, 8, 7, 4),
        (3, 2, 4, 7),
    ),
    "grouped": (
        lambda x, kernel: weight_gradients.convolve(x, kernel, 1, ((1, 1), (1, 1)), groups=2),
        (2, 6, 5, 4),
        (3, 3, 2, 6),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_plain_products(name):
    product, *shapes = CASES[name]
    arguments = [draw(*shape) for shape in shapes]
    out, backward = jax.vjp(product, *arguments)
    expected, plain_backward = jax.vjp(plain(name), *arguments)
    np.testing.assert_array_equal(out, expected)
    gradient = draw(*out.shape)
    for found, wanted in zip(backward(gradient), plain_backward(gradient), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_gradient_of_a_gradient_is_that_of_a_plain_convolution():
    """As penalties on gradients have it, R1 for one."""
    product, *shapes = CASES["strided"]
    x, kernel = (draw(*shape) for shape in shapes)

    def penalty(product, x, kernel):
        return jnp.square(jax.grad(lambda x: jnp.sin(product(x, kernel)).sum())(x)).sum()

    found, expected = (jax.grad(penalty, (1, 2))(one, x, kernel) for one in (product, plain("strided")))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_a_weight_never_was_bfloat16(name):
    """In compute dtype bfloat16 the sum over clips is float32, and so is what devices would exchange."""
    product, activation, weight = CASES[name]
    x, weight = draw(*activation, dtype=jnp.bfloat16), draw(*weight)

    def gradient(x, weight):
        return jax.grad(lambda weight: product(x, weight).astype(jnp.float32).sum())(weight)

    jaxpr = jax.make_jaxpr(gradient)(x, weight)
    made = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
    equation = made[jaxpr.jaxpr.outvars[0]]
    while equation.primitive.name in ("transpose", "reshape", "squeeze", "pjit", "jit", "cond"):
        if equation.primitive.name == "cond":  # of platforms, the default
            inner = equation.params["branches"][-1].jaxpr
            equation = {v: e for e in inner.eqns for v in e.outvars}[inner.outvars[0]]
        elif equation.primitive.name in ("pjit", "jit"):
            inner = equation.params["jaxpr"].jaxpr
            equation = {v: e for e in inner.eqns for v in e.outvars}[inner.outvars[0]]
        else:
            equation = made[equation.invars[0]]
    assert equation.primitive.name in ("dot_general", "conv_general_dilated", "reduce_sum")
    assert equation.outvars[0].aval.dtype == jnp.float32
    assert gradient(x, weight).dtype == jnp.float32


def kernel_gradient(name, x, weight):
    product = CASES[name][0]
    return jax.grad(lambda weight: product(x, weight).astype(jnp.float32).sum())(weight)


@pytest.mark.parametrize("name", ["convolve", "grouped"])
def test_gpus_convolve_in_bfloat16_and_add_devices_in_float32(name):
    _, activation, weight = CASES[name]
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    x = jax.ShapeDtypeStruct((4, *activation[1:]), jnp.bfloat16)
    weight = jax.ShapeDtypeStruct(weight, jnp.float32)
    with jax.set_mesh(mesh):
        traced = jax.jit(lambda x, weight: kernel_gradient(name, x, weight)).trace(x, weight)
        programs = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cuda", "tpu")}
    of = {
        platform: [line for line in text.splitlines() if "stablehlo.convolution" in line][-1]
        for platform, text in programs.items()
    }
    assert of["cuda"].endswith("xbf16>") and of["tpu"].endswith("xf32>")
    (summed,) = re.findall(r"all_reduce.*?\n\s*\}\) : \((tensor<\S+>)\)", programs["cuda"], re.DOTALL)
    assert summed.endswith("xf32>")


def test_what_devices_round_adds_up(monkeypatch):
    """The GPU's branch on eight CPU devices: within the rounding of bfloat16 of the sum in float32."""
    x, weight = draw(8, 6, 5, 4, dtype=jnp.bfloat16), draw(3, 3, 4, 7)
    expected = kernel_gradient("convolve", x, weight)
    chosen = []

    def choose(*arrays, cuda, default):
        chosen.append(cuda)
        return cuda(*arrays)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    with jax.set_mesh(make_mesh(data=4, fsdp=2)):
        found = jax.jit(lambda x, weight: kernel_gradient("convolve", x, weight))(x, weight)
    assert len(chosen) == 1 and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=2**-7 * float(jnp.abs(expected).max()))


CLIPS = 13  # no other axis has as many, or a multiple
NETWORKS = {
    "asfn": {"width": 4},
    "discriminator": {"width": 4, "tube_size": 16},
    "e2fgvi": {
        "width": 4,
        "flow_width": 4,
        "hidden": 8,
        "depth": 1,
        "num_heads": 2,
        "window": (2, 2),
        "ffn_channels": 1,
        "deform_groups": 2,
    },
    "globalpaint": {
        "latent_channels": 4,
        "block_out_channels": (16,),
        "attention_levels": (False,),  # the middle block has it
        "layers_per_block": 1,
        "num_heads": (2,),
        "norm_num_groups": 4,
        "text_dim": 16,
        "est_window": (2, 2, 2),
        "num_global_tokens": 4,
        "global_tokens_dim": 16,
        "patch_width": 16,
        "extractor_width": 16,
        "extractor_heads": 2,
        "frame_tokens": 2,
        "extractor_depths": (1, 1),
    },
    "igfc": {"width": 4, "gated": True},
    "m3ddm": {
        "latent_channels": 4,
        "block_out_channels": (8,),
        "attention_levels": (False,),  # the middle block has it
        "layers_per_block": 1,
        "num_heads": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "global_widths": (4, 4, 4, 8, 8),
        "frame_embedding_dim": 16,
    },
    "style_discriminator": {"width": 4},
}


def sums_over_clips(kind, penalised):
    """[(operation, dtype)] of all sums over clips in the gradient of a network that computes in bfloat16; penalised:
    of the gradient that its inputs have."""
    module = registry.build(kind, **NETWORKS[kind], dtype=jnp.bfloat16)
    arrays, tree = jax.tree.flatten(registry._KINDS[kind].example(module))
    arrays = [jnp.repeat(x, CLIPS, axis=0) if np.ndim(x) else x for x in arrays]
    (first, *others), options = jax.tree.unflatten(tree, arrays)
    variables = dict(registry.abstract_variables(module))
    params = variables.pop("params")

    def total(first, params, variables):
        made = module.apply({"params": params, **variables}, first, *others, **options)
        return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(made))

    def penalty(*arguments):
        return jnp.square(jax.grad(total)(*arguments)).sum()

    found = []
    gradient = jax.grad(penalty if penalised else total, argnums=1)
    for equation, _ in equations(jax.make_jaxpr(gradient)(first, params, variables)):
        axes = {
            "dot_general": lambda params: params["dimension_numbers"][0][0],
            "conv_general_dilated": lambda params: params["dimension_numbers"].lhs_spec[1:2],
            "reduce_sum": lambda params: params["axes"],
        }.get(equation.primitive.name, lambda params: ())(equation.params)
        if any(equation.invars[0].aval.shape[axis] % CLIPS == 0 for axis in axes) and equation.outvars[0].aval.shape:
            found.append((equation.primitive.name, str(equation.outvars[0].aval.dtype)))
    return found


@pytest.mark.parametrize("kind, penalised", [*((kind, False) for kind in NETWORKS), ("discriminator", True)])
def test_networks_sum_gradients_over_clips_in_float32(kind, penalised, monkeypatch):
    """What devices hold a part of the clips of, and add up, is a sum over clips."""
    # E2FGVI's flow network is float32 throughout, and takes longest to trace.
    monkeypatch.setattr(SPyNet, "__call__", lambda self, reference, other: (reference - other)[..., :2])
    found = sums_over_clips(kind, penalised)
    assert found and {dtype for _, dtype in found} == {"float32"}
