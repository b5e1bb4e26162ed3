import jax
import jax.numpy as jnp
import numpy as np

from m3ddm_jax.measure.program import compile_program, random_arrays


def test_a_program_is_planned_from_shapes_and_called_with_arrays():
    shapes = (jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((32, 16), jnp.float32))
    program = compile_program(lambda a, b: jnp.sin(a @ b).sum(axis=0), *shapes)
    assert (program.argument_bytes, program.output_bytes) == (4 * (64 * 32 + 32 * 16), 4 * 16)
    # The product is never less than one row, and has to be somewhere.
    assert program.temp_bytes >= 4 * 16 and program.compile_seconds > 0
    assert program.peak_bytes == program.argument_bytes + program.output_bytes + program.temp_bytes
    a, b = random_arrays(shapes)
    np.testing.assert_allclose(program.call(a, b), np.sin(a @ b).sum(axis=0), atol=1e-4)


def test_random_arrays_are_like_weights():
    shapes = {
        "kernel": jax.ShapeDtypeStruct((3, 3, 64, 32), jnp.bfloat16),
        "var": jax.ShapeDtypeStruct((1000,), jnp.float32),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    arrays = random_arrays(shapes)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), arrays) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    assert arrays["step"] == 0 and arrays["var"].min() >= 0
    # A unit vector's image keeps its length: 576 inputs of variance 1 / 576 each; 5 % of 18,432 draws is 9 deviations.
    assert abs(arrays["kernel"].astype(jnp.float32).std() * 24 - 1) < 0.05
