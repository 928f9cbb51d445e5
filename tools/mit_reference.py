#!/usr/bin/env python3
"""SeMask on a Mix Transformer in PyTorch, written from the papers (SegFormer, SeMask) apart from the crate: makes the numbers
that kernels-tests/mit.rs compares with. Needs torch, numpy, safetensors.

    tools/mit_reference.py fixture kernels-tests/fixtures/mit.safetensors
        a small model: features, class maps, logits, loss and gradients, computed in double precision

    tools/mit_reference.py counts
        parameters and multiply-adds of the published sizes, by PyTorch's counter
"""
import argparse

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from torch import nn

SIZES = {"b0": (32, (2, 2, 2, 2)), "b1": (64, (2, 2, 2, 2)), "b2": (64, (3, 4, 6, 3)), "b3": (64, (3, 4, 18, 3)),
         "b4": (64, (3, 8, 27, 3)), "b5": (64, (3, 6, 40, 3))}


class PatchEmbed(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride):
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x):
        """[B, C, H, W] -> [B, h, w, C']"""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Attention(nn.Module):
    def __init__(self, dim, heads, reduction):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        if reduction > 1:
            self.sr, self.norm = nn.Conv2d(dim, dim, reduction, reduction), nn.LayerNorm(dim)

    def forward(self, x):
        b, h, w, c = x.shape
        tokens = x.reshape(b, h * w, c)
        seen = tokens
        if self.reduction > 1:
            seen = self.norm(self.sr(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2))
        q = self.q(tokens).reshape(b, -1, self.heads, c // self.heads).transpose(1, 2)
        k, v = self.kv(seen).reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / (c // self.heads) ** 0.5
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, h, w, c)
        return self.proj(y)


class Depthwise(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)

    def forward(self, x):
        return self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Mlp(nn.Module):
    def __init__(self, dim, ratio):
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = nn.Linear(dim, ratio * dim), Depthwise(ratio * dim), nn.Linear(ratio * dim, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class Block(nn.Module):
    def __init__(self, dim, heads, reduction, ratio):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, heads, reduction), Mlp(dim, ratio)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SemanticBlock(nn.Module):
    def __init__(self, dim, classes):
        super().__init__()
        self.mlp_cls_q, self.mlp_cls_k = nn.Linear(dim, classes), nn.Linear(dim, classes)
        self.mlp_v, self.mlp_res, self.gamma = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Parameter(torch.zeros(1))

    def forward(self, t):
        prior = self.mlp_cls_q(t)
        mixed = (prior @ self.mlp_cls_k(t).transpose(-1, -2)).softmax(-1) @ self.mlp_v(t)
        return prior, t + self.gamma * self.mlp_res(mixed)


class SemanticLayer(nn.Module):
    """`window`: its side in tokens, None for the whole map. Windows at the border are filled with zeros, which take part."""

    def __init__(self, dim, classes, window):
        super().__init__()
        self.window, self.norm1 = window, nn.LayerNorm(dim)
        self.class_injection = nn.ModuleList([SemanticBlock(dim, classes)])

    def forward(self, x):
        b, h, w, c = x.shape
        x = self.norm1(x)
        if self.window is None:
            prior, t = self.class_injection[0](x.reshape(b, h * w, c))
            return prior.reshape(b, h, w, -1), t.reshape(b, h, w, c)
        m = self.window
        down, across = -(-h // m), -(-w // m)
        x = F.pad(x, (0, 0, 0, across * m - w, 0, down * m - h)).reshape(b, down, m, across, m, c).transpose(2, 3)
        made = self.class_injection[0](x.reshape(-1, m * m, c))
        whole = [y.reshape(b, down, across, m, m, -1).transpose(2, 3).reshape(b, down * m, across * m, -1) for y in made]
        return [y[:, :h, :w] for y in whole]


class Backbone(nn.Module):
    def __init__(self, dims, heads, depths, reductions, ratio, classes, windows):
        super().__init__()
        self.classes = classes
        for i, dim in enumerate(dims):
            before, kernel, stride = (3, 7, 4) if i == 0 else (dims[i - 1], 3, 2)
            setattr(self, f"patch_embed{i + 1}", PatchEmbed(before, dim, kernel, stride))
            blocks = [Block(dim, heads[i], reductions[i], ratio) for _ in range(depths[i])]
            setattr(self, f"block{i + 1}", nn.ModuleList(blocks))
            if classes:
                setattr(self, f"semantic_layer{i + 1}", SemanticLayer(dim, classes, windows[i]))
            setattr(self, f"norm{i + 1}", nn.LayerNorm(dim, eps=1e-6))

    def forward(self, x):
        maps, priors = [], []
        for i in range(1, 5):
            x = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                x = block(x)
            if self.classes:
                prior, x = getattr(self, f"semantic_layer{i}")(x)
                priors.append(prior.permute(0, 3, 1, 2))
            # What the next stage sees is normalised, unlike in Swin.
            x = getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2)
            maps.append(x)
        return maps, priors


class Unit(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Double(nn.Module):
    def forward(self, x):
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Head(nn.Module):
    def __init__(self, dims, channels, classes):
        super().__init__()
        chains = [[Unit(dim if k == 0 else channels, channels) for k in range(max(1, i))] for i, dim in enumerate(dims)]
        with_doublings = [[m for unit in chain for m in ([unit, Double()] if i else [unit])] for i, chain in enumerate(chains)]
        self.scale_heads = nn.ModuleList(nn.Sequential(*chain) for chain in with_doublings)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, maps):
        total = self.scale_heads[0](maps[0])
        for head, x in zip(self.scale_heads[1:], maps[1:]):
            total = total + F.interpolate(head(x), total.shape[2:], mode="bilinear", align_corners=False)
        return self.conv_seg(total)


class Model(nn.Module):
    def __init__(self, dims, heads, depths, reductions, ratio, channels, classes, windows, semantic=True):
        super().__init__()
        self.backbone = Backbone(dims, heads, depths, reductions, ratio, classes if semantic else 0, windows)
        self.decode_head = Head(dims, channels, classes)

    def forward(self, x):
        maps, priors = self.backbone(x)
        return self.decode_head(maps), maps, priors

    def losses(self, logits, priors, labels):
        sum_of = priors[0]
        for i, prior in enumerate(priors[1:], 1):
            for _ in range(i):
                prior = Double()(prior)
            sum_of = sum_of + F.interpolate(prior, sum_of.shape[2:], mode="bilinear", align_corners=False)
        full = [F.interpolate(x, labels.shape[1:], mode="bilinear", align_corners=False) for x in (logits, sum_of)]
        ce, cate = [F.cross_entropy(x, labels, reduction="none", ignore_index=255).mean() for x in full]
        return ce, 0.4 * cate


def small():
    return Model((8, 8, 16, 16), (1, 1, 2, 2), (1, 2, 1, 1), (8, 2, 2, 1), 2, 4, 5, (4, 4, None, None))


def fill(model):
    """Numbers that the test makes, too: those of a generator (Knuth's MMIX), in order of the parameters' names."""
    state = 1
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = np.empty(parameter.numel(), np.float32)
            scale = np.float32(parameter.numel() // parameter.shape[0] if parameter.dim() > 1 else 16)
            for i in range(values.size):
                state = (state * 6364136223846793005 + 1442695040888963407) % 2 ** 64
                values[i] = np.float32((state >> 40) - 2 ** 23) / np.float32(2 ** 23) / np.sqrt(scale)
            if name.endswith("gamma"):
                values[:] = 0.5
            elif parameter.dim() == 1 and name.endswith("weight"):
                values += np.float32(1)
            parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))


def image_and_labels(height=62, width=83):
    i = np.arange(3 * height * width, dtype=np.int64)
    image = (((i * i * 31 + i * 7919) % 1009) - 504).astype(np.float32) / np.float32(504)
    j = np.arange(height * width, dtype=np.int64)
    labels = j // width // 9 % 2 * 3 + j % width // 11 % 3
    labels[labels == 5] = 255
    return torch.from_numpy(image).reshape(1, 3, height, width), torch.from_numpy(labels).reshape(1, height, width)


def run(dtype):
    model = small().train()
    fill(model)
    model = model.to(dtype)
    image, labels = image_and_labels()
    logits, maps, priors = model(image.to(dtype))
    ce, cate = model.losses(logits, priors, labels)
    (ce + cate).backward()
    found = {f"map.{i}": x for i, x in enumerate(maps)} | {f"prior.{i}": x for i, x in enumerate(priors)}
    found |= {"logits": logits, "ce": ce.reshape(1), "cate": cate.reshape(1)}
    found |= {f"gradient.{name}": parameter.grad for name, parameter in model.named_parameters()}
    return {name: x.detach().numpy() for name, x in found.items()}


def fixture(path):
    single, double = run(torch.float32), run(torch.float64)
    worst = {}
    for name, wanted in double.items():
        kind = name.split(".")[0]
        error = np.abs(single[name] - wanted).max() / max(np.abs(wanted).max(), 1e-6)
        worst[kind] = max(worst.get(kind, 0), error)
        if error > 1e-4:
            print(f"{name}: {error:.1e} of {np.abs(wanted).max():.1e}")
    print("single precision is off by at most", {kind: f"{error:.1e}" for kind, error in worst.items()})
    save_file({name: np.ascontiguousarray(x.astype(np.float32)) for name, x in double.items()}, path)


def counts():
    from torch.utils.flop_counter import FlopCounterMode
    for classes, side, windows in [(150, 512, (7, 7, None, None)), (19, 768, (7, 7, 7, 7))]:
        for name, (dim, depths) in SIZES.items():
            for semantic in [True, False]:
                with torch.device("meta"):
                    heads = (1, 2, 5, 8)
                    model = Model([dim * h for h in heads], heads, depths, (8, 4, 2, 1), 4, 256, classes, windows, semantic).eval()
                    image = torch.zeros(1, 3, side, side)
                with FlopCounterMode(display=False) as counter, torch.no_grad():
                    model(image)
                with FlopCounterMode(display=False) as encoder, torch.no_grad():
                    model.backbone(image)
                parameters, of_encoder = [sum(p.numel() for p in m.parameters()) for m in (model, model.backbone)]
                adds, encoder_adds = counter.get_total_flops() // 2, encoder.get_total_flops() // 2
                print(f'("{"semask-mit" if semantic else "mit"}-{name}", {classes}, {parameters:_}, {of_encoder:_}, {side}, '
                      f"[{encoder_adds:_}, {adds - encoder_adds:_}]),")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fixture").add_argument("path")
    commands.add_parser("counts")
    args = parser.parse_args()
    fixture(args.path) if args.command == "fixture" else counts()


if __name__ == "__main__":
    main()
