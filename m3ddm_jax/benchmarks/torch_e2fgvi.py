"""E2FGVI's arithmetic stated in PyTorch as one would write it there: what the generator's speed is measured by.

Loops over frames are loops, deformable taps are sampled all at once, neighbours of windows are rolled copies.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from flax.traverse_util import flatten_dict

from m3ddm_jax.models.e2fgvi import E2FGVI
from m3ddm_jax.types import Variables

_PATCH = {"kernel_size": 7, "padding": 3, "stride": 3}
_PATCH_OUTPUT = ("sc/embedding", "mlp/conv1_0")
_PATCH_INPUT = ("ss/embedding", "mlp/conv2_1")
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
_FLOW_LEVELS = 6


class PlainE2FGVI:
    """The network of a module and its variables: called with masked frames [B, T, 3, H, W], gives all frames.

    The sides of its windows are odd, as the published ones are.
    """

    def __init__(self, module: E2FGVI, variables: Variables):
        self._module = module
        self._weights = {
            path: _to_torch(path, torch.tensor(leaf.__array__()))
            for path, leaf in flatten_dict(variables["params"], sep="/").items()
        }

    @torch.inference_mode()
    def __call__(self, frames: torch.Tensor, num_local: int) -> torch.Tensor:
        batch, height, width = frames.shape[0], frames.shape[3] // 4, frames.shape[4] // 4
        features = rearrange(self._encode(frames.flatten(0, 1)), "(b t) c h w -> b t c h w", b=batch)
        small = ((frames[:, :num_local] + 1) / 2).flatten(0, 1)
        small = F.interpolate(small, (height, width), mode="bilinear", align_corners=True)
        small = rearrange(small, "(b t) c h w -> b t c h w", b=batch)
        earlier, later = small[:, :-1].flatten(0, 1), small[:, 1:].flatten(0, 1)
        flows = [
            rearrange(self._flow(*pair), "(b t) xy h w -> b t xy h w", b=batch)
            for pair in ((earlier, later), (later, earlier))
        ]
        local = self._propagate(features[:, :num_local], *flows)
        features = torch.cat([local, features[:, num_local:]], 1).flatten(0, 1)
        tokens = self._linear("ss/embedding", F.unfold(features, **_PATCH).transpose(1, 2))
        tokens = rearrange(tokens, "(b t) (i j) c -> b t i j c", b=batch, i=height // 3)
        for layer in range(self._module.depth):
            tokens = self._block(f"transformer_{layer}", tokens, (height, width))
        patches = self._linear("sc/embedding", rearrange(tokens, "b t i j c -> (b t) (i j) c")).transpose(1, 2)
        features = features + self._conv("sc/bias_conv", F.fold(patches, (height, width), **_PATCH), padding=1)
        return rearrange(self._decode(features), "(b t) c h w -> b t c h w", b=batch)

    def _conv(self, name: str, x: torch.Tensor, **options) -> torch.Tensor:
        return F.conv2d(x, self._weights[f"{name}/kernel"], self._weights[f"{name}/bias"], **options)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weights[f"{name}/kernel"], self._weights[f"{name}/bias"])

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self._weights[f"{name}/scale"], self._weights[f"{name}/bias"])

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        for layer, stride in ((0, 2), (2, 1), (4, 2), (6, 1)):
            x = F.leaky_relu(self._conv(f"encoder/layers_{layer}", x, stride=stride, padding=1), 0.2)
        skipped = x
        x = F.leaky_relu(self._conv("encoder/layers_8", x, padding=1), 0.2)
        for layer, groups in ((10, 2), (12, 4), (14, 8), (16, 1)):
            parts = [rearrange(part, "n (g c) h w -> n g c h w", g=groups) for part in (skipped, x)]
            x = torch.cat(parts, 2).flatten(1, 2)
            x = F.leaky_relu(self._conv(f"encoder/layers_{layer}", x, padding=1, groups=groups), 0.2)
        return x

    def _decode(self, x: torch.Tensor) -> torch.Tensor:
        def doubled(x):
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)

        x = F.leaky_relu(self._conv("decoder/layers_0_conv", doubled(x), padding=1), 0.2)
        x = F.leaky_relu(self._conv("decoder/layers_2", x, padding=1), 0.2)
        x = F.leaky_relu(self._conv("decoder/layers_4_conv", doubled(x), padding=1), 0.2)
        return torch.tanh(self._conv("decoder/layers_6", x, padding=1))

    def _flow(self, reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        height, width = reference.shape[-2:]
        rows, columns = (-(-side // 32) * 32 for side in (height, width))
        mean, deviation = (torch.tensor(colours).view(3, 1, 1) for colours in (_MEAN, _DEVIATION))
        pyramids = []
        for images in (reference, other):
            images = F.interpolate(images, (rows, columns), mode="bilinear", align_corners=False)
            pyramid = [(images - mean) / deviation]
            while len(pyramid) < _FLOW_LEVELS:
                pyramid.insert(0, F.avg_pool2d(pyramid[0], 2))
            pyramids.append(pyramid)
        flow = reference.new_zeros(len(reference), 2, rows // 32, columns // 32)
        for level, (first, second) in enumerate(zip(*pyramids, strict=True)):
            if level:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
            x = torch.cat([first, _warp(second, flow, "border"), flow], 1)
            for layer in range(5):
                x = self._conv(f"update_spynet/basic_module_{level}/basic_module_{layer}/conv", x, padding=3)
                x = F.relu(x) if layer < 4 else x
            flow = flow + x
        flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
        return flow * torch.tensor([width / columns, height / rows]).view(2, 1, 1)

    def _propagate(self, features: torch.Tensor, forward: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
        frames = list(features.unbind(1))
        from_behind = self._pass("backward_", [[frame] for frame in frames[::-1]], forward.unbind(1))[::-1]
        pairs = [list(pair) for pair in zip(frames, from_behind, strict=True)]
        from_before = self._pass("forward_", pairs, backward.unbind(1))
        fusion = self._weights["feat_prop_module/fusion/kernel"][..., None, None]
        bias = self._weights["feat_prop_module/fusion/bias"]
        joined = [F.conv2d(torch.cat(pair, 1), fusion, bias) for pair in zip(from_behind, from_before, strict=True)]
        return features + torch.stack(joined, 1)

    def _pass(self, name: str, inputs: list, flows: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        name, states = f"feat_prop_module/{name}", []
        for step, parts in enumerate(inputs):
            state = torch.zeros_like(parts[0])
            if step:
                flow, before, flow_before = flows[step - 1], torch.zeros_like(state), torch.zeros_like(flows[0])
                if step > 1:
                    before, flow_before = states[-2], flow + _warp(flows[step - 2], flow)
                state = self._align(f"{name}/deform_align", states[-1], before, parts[0], flow, flow_before)
            hidden = self._conv(f"{name}/backbone_0", torch.cat([*parts, state], 1), padding=1)
            states.append(state + self._conv(f"{name}/backbone_2", F.leaky_relu(hidden, 0.1), padding=1))
        return states

    def _align(self, name: str, previous, before, current, flow, flow_before) -> torch.Tensor:
        hidden = torch.cat([_warp(previous, flow), current, _warp(before, flow_before), flow, flow_before], 1)
        for layer in (0, 2, 4):
            hidden = F.leaky_relu(self._conv(f"{name}/conv_offset_{layer}", hidden, padding=1), 0.1)
        *offsets, modulation = self._conv(f"{name}/conv_offset_6", hidden, padding=1).chunk(3, 1)
        offsets = (10 * torch.tanh(torch.cat(offsets, 1))).chunk(2, 1)
        moves = [
            part + repeat(flow.flip(1), "n yx h w -> n (k yx) h w", k=part.shape[1] // 2)
            for part, flow in zip(offsets, (flow, flow_before), strict=True)
        ]
        kernel, bias = self._weights[f"{name}/kernel"], self._weights[f"{name}/bias"]
        both = torch.cat([previous, before], 1)
        return (
            _deformed(both, torch.cat(moves, 1), modulation.sigmoid(), kernel, self._module.deform_groups)
            + bias[:, None, None]
        )

    def _block(self, name: str, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        tokens = tokens + self._attend(name, self._norm(f"{name}/norm1", tokens))
        batch, _, rows, columns, _ = tokens.shape
        patches = self._linear(f"{name}/mlp/conv1_0", self._norm(f"{name}/norm2", tokens))
        patches = rearrange(patches, "b t i j c -> (b t) c (i j)")
        covered = F.fold(torch.ones(1, 49, rows * columns), size, **_PATCH)
        hidden = F.gelu(F.unfold(F.fold(patches, size, **_PATCH) / covered, **_PATCH))
        hidden = rearrange(hidden, "(b t) c (i j) -> b t i j c", b=batch, i=rows)
        return tokens + self._linear(f"{name}/mlp/conv2_1", hidden)

    def _attend(self, name: str, tokens: torch.Tensor) -> torch.Tensor:
        frames, window = tokens.shape[1], self._module.window
        windows = _windows(tokens, window)
        _, height, width = windows.shape[:3]
        pooled = self._linear(f"{name}/pool_layers_0", rearrange(windows, "b i j t k c -> b t i j c k"))[..., 0]
        query, *near = self._linear(f"{name}/attn/qkv", tokens).chunk(3, -1)
        _, *far = self._linear(f"{name}/attn/qkv", pooled).chunk(3, -1)
        query = rearrange(_windows(query, window), "b i j t k c -> (b i j) (t k) c")
        context = [torch.cat([*_near(x, window), _far(y, window)], 1) for x, y in zip(near, far, strict=True)]
        query, key, value = (rearrange(x, "b t (n d) -> b n t d", n=self._module.num_heads) for x in (query, *context))
        there = F.unfold(torch.ones(1, 1, height, width), window, padding=[side // 2 for side in window])[0].T
        there = repeat(there, "w k -> (b w) 1 1 (t k)", b=len(tokens), t=frames)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        scores[..., -there.shape[-1] :] += torch.where(there > 0, 0.0, -100.0)
        out = rearrange(scores.softmax(-1) @ value, "b n t d -> b t (n d)")
        sides = {"i": height, "j": width, "t": frames, "p": window[0]}
        return self._linear(f"{name}/attn/proj", rearrange(out, "(b i j) (t p q) c -> b t (i p) (j q) c", **sides))


def _to_torch(path: str, leaf: torch.Tensor) -> torch.Tensor:
    """A parameter as PyTorch lays it out; patches have channels first there."""
    if not path.endswith("kernel"):
        sizes = {"p": 7, "q": 7}
        is_patch = path.removesuffix("/bias").endswith(_PATCH_OUTPUT)
        return rearrange(leaf, "(p q c) -> (c p q)", **sizes) if is_patch else leaf
    if leaf.ndim == 4:
        return rearrange(leaf, "p q i o -> o i p q").contiguous()
    kernel, name = leaf.T, path.removesuffix("/kernel")
    if name.endswith(_PATCH_OUTPUT):
        kernel = rearrange(kernel, "(p q c) i -> (c p q) i", p=7, q=7)
    if name.endswith(_PATCH_INPUT):
        kernel = rearrange(kernel, "o (p q c) -> o (c p q)", p=7, q=7)
    return kernel.contiguous()


def _sample(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, padding: str = "zeros") -> torch.Tensor:
    height, width = images.shape[-2:]
    grid = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], -1)
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=True)


def _warp(images: torch.Tensor, flow: torch.Tensor, padding: str = "zeros") -> torch.Tensor:
    rows, columns = torch.arange(images.shape[-2])[:, None], torch.arange(images.shape[-1])
    return _sample(images, rows + flow[:, 1], columns + flow[:, 0], padding)


def _deformed(images, offsets, modulation, kernel, groups: int) -> torch.Tensor:
    batch, _, height, width = images.shape
    offsets = rearrange(offsets, "n (g k yx) h w -> yx (n g) k h w", g=groups, yx=2)
    rows, columns = (step.reshape(9, 1, 1) for step in torch.meshgrid(*(torch.arange(3) - 1,) * 2, indexing="ij"))
    rows = rearrange(offsets[0] + rows + torch.arange(height)[:, None], "n k h w -> n (k h) w")
    columns = rearrange(offsets[1] + columns + torch.arange(width), "n k h w -> n (k h) w")
    sampled = _sample(rearrange(images, "n (g c) h w -> (n g) c h w", g=groups), rows, columns)
    sampled = rearrange(sampled, "(n g) c (k h) w -> n g c k (h w)", n=batch, k=9)
    sampled = sampled * rearrange(modulation, "n (g k) h w -> n g 1 k (h w)", g=groups)
    out = kernel.flatten(1) @ rearrange(sampled, "n g c k x -> n (g c k) x")
    return rearrange(out, "n o (h w) -> n o h w", h=height)


def _windows(tokens: torch.Tensor, window) -> torch.Tensor:
    rows, columns = window
    return rearrange(tokens, "b t (i p) (j q) c -> b i j t (p q) c", p=rows, q=columns)


def _near(tokens: torch.Tensor, window) -> list[torch.Tensor]:
    """A window's own tokens, and of copies rolled by half a window both ways those that are not among them."""
    rows, columns = window
    parts = [rearrange(_windows(tokens, window), "b i j t k c -> (b i j) (t k) c")]
    for down in (-(rows // 2), rows // 2):
        for right in (-(columns // 2), columns // 2):
            row, column = torch.arange(rows)[:, None] - down, torch.arange(columns) - right
            outside = ~((row >= 0) & (row < rows) & (column >= 0) & (column < columns)).flatten()
            rolled = _windows(torch.roll(tokens, (down, right), (2, 3)), window)[..., outside, :]
            parts.append(rearrange(rolled, "b i j t k c -> (b i j) (t k) c"))
    return parts


def _far(pooled: torch.Tensor, window) -> torch.Tensor:
    batch, frames = pooled.shape[:2]
    maps = rearrange(pooled, "b t i j c -> (b t) c i j")
    around = F.unfold(maps, window, padding=[side // 2 for side in window])
    sides = {"b": batch, "t": frames, "c": maps.shape[1]}
    return rearrange(around, "(b t) (c k) w -> (b w) (t k) c", **sides)
