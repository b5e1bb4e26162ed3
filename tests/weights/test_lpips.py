import sys

import jax
import jax.numpy as jnp
import lpips
import numpy as np
import pytest
import torch

from m3ddm_jax.models.lpips import LPIPS
from m3ddm_jax.weights import lpips as conversion
from m3ddm_jax.weights.lpips import lpips_from_state_dicts, packaged_heads

# Convolutions of torchvision's networks, `features.<index>.weight` as [out, in, taps, taps].
CONVOLUTIONS = {
    "alex": {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)},
    "vgg": {0: (64, 3, 3), 2: (64, 64, 3), 5: (128, 64, 3), 7: (128, 128, 3), 10: (256, 128, 3), 12: (256, 256, 3)}
    | {14: (256, 256, 3), 17: (512, 256, 3)}
    | {index: (512, 512, 3) for index in (19, 21, 24, 26, 28)},
}
HEADS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def backbone_of(net, rng=None):
    """A torchvision state dict of zeros, or of random numbers."""
    shapes = {}
    for index, (out, into, taps) in CONVOLUTIONS[net].items():
        shapes |= {f"features.{index}.weight": (out, into, taps, taps), f"features.{index}.bias": (out,)}
    return {n: rng.normal(size=s).astype(np.float32) if rng else np.zeros(s, np.float32) for n, s in shapes.items()}


def heads_of(net):
    return {f"lin{i}.model.1.weight": np.full((1, c, 1, 1), i, np.float32) for i, c in enumerate(HEADS[net])}


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_every_tensor_finds_its_place(net):
    rng = np.random.default_rng(0)
    backbone = backbone_of(net, rng)
    module, variables = lpips_from_state_dicts(backbone, heads_of(net))
    assert module == LPIPS(net)
    params = variables["params"]
    assert len(params) == len(CONVOLUTIONS[net]) + 5
    for index in CONVOLUTIONS[net]:
        np.testing.assert_array_equal(params[f"features_{index}"]["bias"], backbone[f"features.{index}.bias"])
        np.testing.assert_array_equal(
            params[f"features_{index}"]["kernel"], np.transpose(backbone[f"features.{index}.weight"], (2, 3, 1, 0))
        )
    for i, channels in enumerate(HEADS[net]):
        np.testing.assert_array_equal(params[f"lin{i}"]["kernel"], np.full((channels, 1), i))


def test_the_classifier_is_not_even_read():
    class Lazy(dict):
        def __getitem__(self, name):
            assert not name.startswith("classifier"), f"{name} was read"
            return super().__getitem__(name)

    lpips_from_state_dicts(Lazy(backbone_of("alex"), **{"classifier.1.weight": None}), heads_of("alex"))


def test_the_package_has_other_names_and_some_twice():
    backbone, heads = backbone_of("vgg", np.random.default_rng(1)), heads_of("vgg")
    slices = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4, 24: 5, 26: 5, 28: 5}
    state_dict = {"scaling_layer.shift": np.zeros((1, 3, 1, 1)), "scaling_layer.scale": np.ones((1, 3, 1, 1)), **heads}
    for name, tensor in backbone.items():
        state_dict[name.replace("features", f"net.slice{slices[int(name.split('.')[1])]}")] = tensor
    for name, tensor in heads.items():
        state_dict[name.replace("lin", "lins.")] = tensor
    (module, variables), (_, expected) = (lpips_from_state_dicts(*x) for x in [(state_dict,), (backbone, heads)])
    assert module == LPIPS("vgg")
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_everything_that_does_not_fit_is_listed():
    backbone = backbone_of("alex")
    del backbone["features.3.bias"]
    backbone["features.6.bias"] = np.zeros(7, np.float32)
    backbone["layer4.0.bn1.weight"] = np.zeros(3, np.float32)
    message = (
        r"LPIPS alex does not fit the model: .*missing features\.3\.bias \[192\]; "
        r"surplus layer4\.0\.bn1\.weight \[3\]; features\.6\.bias is \[7\], expected \[384\]$"
    )
    with pytest.raises(ValueError, match=message):
        lpips_from_state_dicts(backbone, heads_of("alex"))


def test_heads_of_the_other_net_do_not_fit():
    message = r"lin1\.model\.1\.weight is \[1, 128, 1, 1\], expected \[1, 192\]"
    with pytest.raises(ValueError, match=message):
        lpips_from_state_dicts(backbone_of("alex"), heads_of("vgg"))


def test_heads_come_once():
    with pytest.raises(ValueError, match=r"lin0\.model\.1\.weight.* is both in the backbone's file and"):
        lpips_from_state_dicts(backbone_of("alex") | heads_of("alex"), heads_of("alex"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("conv1.weight", r"no features\.0\.weight"), ("features.0.weight", r"features\.0\.weight is \[64, 3, 7, 7\]")],
)
def test_refuses_other_networks(name, message):
    with pytest.raises(ValueError, match=f"{message}: torchvision's alexnet and vgg16 are accepted"):
        lpips_from_state_dicts({name: np.zeros((64, 3, 7, 7))})


def test_heads_come_from_the_package_without_importing_it(tmp_path, monkeypatch):
    weights = tmp_path / "lpips/weights/v0.1"
    weights.mkdir(parents=True)
    (tmp_path / "lpips/__init__.py").write_text("raise RuntimeError('imported')\n")
    torch.save({name: torch.tensor(value) for name, value in heads_of("vgg").items()}, weights / "vgg.pth")
    monkeypatch.delitem(sys.modules, "lpips", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    _, variables = lpips_from_state_dicts(backbone_of("vgg"))
    np.testing.assert_array_equal(variables["params"]["lin4"]["kernel"], np.full((512, 1), 4))


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(conversion.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install lpips"):
        lpips_from_state_dicts(backbone_of("alex"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("net", "size"), [("alex", (47, 64)), pytest.param("vgg", (33, 40), marks=pytest.mark.slow)])
def test_agrees_with_the_package(net, size):
    """Random backbone, the package's heads: one state dict with both, or a torchvision one and the heads it ships."""
    torch.manual_seed(0)
    reference = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    state_dict = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    module, variables = lpips_from_state_dicts(state_dict)
    backbone = {
        "features." + name.split(".", 2)[2]: value for name, value in state_dict.items() if name.startswith("net.")
    }
    for separate, joint in zip(*map(jax.tree.leaves, (lpips_from_state_dicts(backbone)[1], variables)), strict=True):
        np.testing.assert_array_equal(separate, joint)

    rng = np.random.default_rng(0)
    a = rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    b = np.clip(a + rng.normal(0, 0.2, a.shape), -1, 1).astype(np.float32)
    with torch.no_grad():
        first, second = (torch.tensor(np.moveaxis(x, -1, 1)) for x in (a, b))
        expected = reference(first, second)[:, 0, 0, 0]
        reference.spatial = True
        expected_map = reference(first, second)[:, 0]
    # float32 sums in another order.
    np.testing.assert_allclose(jax.jit(module.apply)(variables, a, b), expected, rtol=1e-4)
    distance_map = jax.jit(lambda a, b: module.apply(variables, a, b, method="distance_map"))(jnp.array(a), b)
    np.testing.assert_allclose(distance_map, expected_map, rtol=1e-3, atol=1e-6)
    assert set(packaged_heads(net)) == {f"lin{i}.model.1.weight" for i in range(5)}
