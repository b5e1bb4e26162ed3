import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange
from safetensors.numpy import load_file

from m3ddm_jax.models.raft import RAFT
from m3ddm_jax.weights.raft import raft_from_state_dict

# torchvision's names of RAFT's parts and the official ones.
_OFFICIAL = (
    (r"^feature_encoder\.", "fnet."),
    (r"^context_encoder\.", "cnet."),
    (r"^([fc]net)\.conv\.", r"\1.conv2."),
    (r"convnormrelu\.0\.", "conv1."),
    (r"convnormrelu(\d)\.0\.", r"conv\1."),
    (r"motion_encoder\.convcorr(\d)\.0\.", r"encoder.convc\1."),
    (r"motion_encoder\.convflow(\d)\.0\.", r"encoder.convf\1."),
    (r"motion_encoder\.conv\.0\.", "encoder.conv."),
    (r"recurrent_block\.convgru1\.", "gru."),
)


def channels_last(x):
    return rearrange(x, "b c h w -> b h w c")


def random_images(seed, height=128, width=128):
    """Two images of coarse noise, the second one shifted."""
    noise = jax.random.uniform(jax.random.key(seed), (1, height // 4 + 1, width // 4 + 1, 3)) * 255
    wide = jax.image.resize(noise, (1, height + 4, width + 4, 3), "cubic")
    return np.array(wide[:, :-4, :-4]), np.array(wide[:, 1:-3, 2:-2])


def test_every_stage_equals_the_official_basic_model(goldens):
    folder = goldens / "isvi/raft_basic_slim4"
    module, variables = raft_from_state_dict(load_file(folder / "weights.safetensors"))
    assert module == RAFT(width=16)
    inputs, expected = np.load(folder / "inputs.npz"), np.load(folder / "outputs.npz")
    images = [channels_last(inputs[f"image{number}"]) for number in (1, 2)]
    parts = ("fnet", "cnet")
    run = functools.partial(module.apply, iterations=4, capture_intermediates=lambda part, _: part.name in parts)
    flows, state = jax.jit(run)(variables, *images)
    found = dict(zip(("fmap1", "fmap2"), np.split(state["intermediates"]["fnet"]["__call__"][0], 2), strict=True))
    found["cnet"] = state["intermediates"]["cnet"]["__call__"][0]
    found |= {f"flow_up_{number}": flow for number, flow in enumerate(flows)}
    found["flow_test"] = flows[-1]
    for name, value in found.items():
        # float32 sums in another order, fed back four times; flows are of some pixels.
        np.testing.assert_allclose(value, channels_last(expected[name]), rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_small_model_equals_torchvisions_on_images_of_any_size():
    """They continue at their borders up to multiples of 8; `flow` gives the last of a call's flows alone."""
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    reference = raft_small().eval()
    tensors = {}
    for name, tensor in reference.state_dict().items():
        for theirs, official in _OFFICIAL:
            name = re.sub(theirs, official, name)
        tensors[name] = tensor.numpy()
    module, variables = raft_from_state_dict(tensors)
    assert module == RAFT(width=32, small=True)
    images = [image[:, :125, :122] for image in random_images(0)]
    flow = jax.jit(functools.partial(module.apply, iterations=2, method="flow"))(variables, *images)
    padded = [np.pad(image, ((0, 0), (1, 2), (3, 3), (0, 0)), "edge") for image in images]
    with torch.no_grad():
        scaled = [torch.from_numpy(2 * rearrange(image, "b h w c -> b c h w") / 255 - 1) for image in padded]
        expected = channels_last(reference(*scaled, num_flow_updates=2)[-1].numpy())[:, 1:126, 3:125]
    assert flow.shape == (1, 125, 122, 2) and np.abs(expected).max() > 0.1
    # float32 sums in another order, fed back twice.
    np.testing.assert_allclose(flow, expected, rtol=1e-4, atol=1e-4)


def test_refuses_what_has_no_flow():
    def run(first, second, iterations=1):
        init = functools.partial(RAFT(width=2).init, iterations=iterations)
        jax.eval_shape(init, jax.random.key(0), jnp.zeros(first), jnp.zeros(second))

    with pytest.raises(ValueError, match="images are 200x120: RAFT's correlation pyramid takes sides of more than 120"):
        run((1, 120, 200, 3), (1, 120, 200, 3))
    with pytest.raises(ValueError, match=r"not \[1, 128, 128, 3\] and \[1, 128, 136, 3\]"):
        run((1, 128, 128, 3), (1, 128, 136, 3))
    with pytest.raises(ValueError, match="iterations is 0: 1 or more"):
        run((1, 128, 128, 3), (1, 128, 128, 3), 0)
