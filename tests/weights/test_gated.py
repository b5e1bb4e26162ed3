import numpy as np
import pytest

from m3ddm_jax.weights.gated import network_tensors, read_choice, shared_hyper, shown_settings


def test_a_spectral_norm_is_the_singular_value_that_its_vectors_estimate():
    kernel = np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32)
    u, values, v = np.linalg.svd(kernel.reshape(4, -1), full_matrices=False)
    tensors = {"net.a.weight_orig": kernel, "net.a.weight_u": u[:, 0], "net.a.weight_v": v[0], "net.a.bias": u[:, 1]}
    found = network_tensors(tensors)
    assert set(found) == {"a.weight", "a.bias"} and found["a.weight"].dtype == np.float32
    np.testing.assert_allclose(found["a.weight"], kernel / values[0], rtol=1e-5)


@pytest.mark.parametrize("broken", [{"a.weight_v": None}, {"a.weight_v": np.ones(5)}, {"a.weight_u": np.ones(3)}])
def test_vectors_that_do_not_fit_stay_as_they_are(broken):
    tensors = {"a.weight_orig": np.ones((4, 3, 2, 2)), "a.weight_u": np.ones(4), "a.weight_v": np.ones(12)} | broken
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    assert network_tensors(tensors).keys() == tensors.keys()


def test_the_first_block_shows_what_both_networks_share():
    tensors = {"in.featureConv.weight": np.ones((8, 3, 5, 5)), "in.gatingConv.weight": np.ones((8, 3, 5, 5))}
    shown = shown_settings(tensors, "in", channels=2)
    assert shown == {"cnum": 8, "in_channel": 3, "PASSMASK": 1, "use_bias": 0, "conv_type": "gated"}
    assert shared_hyper(shown) == {"width": 8, "pass_mask": True, "use_bias": False, "gated": True}
    assert shared_hyper(shown_settings(tensors, "other", channels=2)) == {}


def test_choices():
    assert read_choice({"a": 0}, "a", {0: False, 1: True}, 1) is False
    assert read_choice({}, "a", {0: False, 1: True}, 1) is True
    for value in (2, "1", None, [1]):
        with pytest.raises(ValueError, match="the config says a .*: 0 or 1 is accepted"):
            read_choice({"a": value}, "a", {0: False, 1: True}, 1)
