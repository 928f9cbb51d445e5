#!/usr/bin/env python3
"""Files of PyTorch, to test the reading and writing of checkpoints with. Needs torch, numpy, safetensors.

    tools/torch_files.py fixtures kernels-tests/fixtures/torch
        writes the small files that the tests read, and what is in them (NAME.safetensors for NAME*.*)

    tools/torch_files.py check target/debug/semask-gpu --count 300
        makes so many files of random contents (types, strides, sharing, nesting, formats, protocols),
        has the program convert each to safetensors and compares every bit; then has it convert that
        back to a PyTorch file and compares what torch.load(weights_only=True) makes of it, and to a
        pickle of NumPy arrays where NumPy has their types
"""
import argparse
import collections
import io
import pathlib
import pickle
import random
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
# Without a storage class of their own: written with _rebuild_tensor_v3, or in zip files only.
RECENT = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]


def elements(rng, shape, dtype):
    """A contiguous tensor of random values, of random bits where that is safe."""
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if dtype == torch.complex64:
        return torch.randn(shape, dtype=dtype, generator=generator)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 127, shape, generator=generator).to(dtype)


def tensor(rng, recent):
    """A tensor with strides, an offset, a wrapper of some kind."""
    dtypes = FLOATS * 3 + INTEGERS + [torch.complex64] + (RECENT if recent else [])
    dtype = rng.choice(dtypes)
    shape = [rng.choice([0, 1, 2, 3, 5, 8]) if rng.random() < 0.1 else rng.randint(1, 6)
             for _ in range(rng.randint(0, 5))]
    x = elements(rng, shape, dtype)
    kind = rng.randrange(8)
    if kind == 1 and x.dim() >= 2:
        x = x.transpose(0, -1)
    elif kind == 2 and x.dim() >= 1:
        x = x[..., ::2]
    elif kind == 3 and x.dim() >= 1 and x.shape[0] > 1:
        x = x[1:]
    elif kind == 4:
        x = x.unsqueeze(0).expand(3, *x.shape)
    elif kind == 5 and x.dim() >= 1:
        x = x.permute(*rng.sample(range(x.dim()), x.dim()))
    elif kind == 6 and dtype.is_floating_point and dtype not in RECENT:
        x = nn.Parameter(x, requires_grad=rng.random() < 0.5)
        if rng.random() < 0.3:
            x.note = "an attribute"
    elif kind == 7 and dtype == torch.float32:
        x.note = "an attribute"
    return x


def contents(rng, depth, tensors, recent):
    """Nested containers with tensors, some of which share their elements."""
    def value():
        roll = rng.random()
        if roll < 0.2 and depth < 4:
            return contents(rng, depth + 1, tensors, recent)
        if roll < 0.3 and tensors:
            other = rng.choice(tensors)
            return rng.choice([other, other.detach(), other[1:] if other.dim() and len(other) > 1 else other])
        if roll < 0.4:
            return rng.choice([None, True, 3, -2 ** 40, 2 ** 70, 0.5, "text", "ü🦀", b"bytes", {1, 2}, 1j,
                               torch.Size([1, 2]), torch.device("cpu"), torch.float16,
                               np.float64(0.5), bytearray(b"ab"), collections.Counter("aab")])
        tensors.append(tensor(rng, recent))
        return tensors[-1]

    count = rng.randint(0 if depth else 1, 6)
    kind = rng.randrange(5)
    if kind == 0 and depth:
        return [value() for _ in range(count)]
    if kind == 1 and depth:
        return tuple(value() for _ in range(count))
    make = collections.OrderedDict if kind == 2 else dict
    keys = [rng.choice(["weight", "bias", "layers.0", "attn", "ü"]) + str(i) for i in range(count)]
    if kind == 3:
        keys = [i * 7 for i in range(count)]
    return make((key, value()) for key in keys)


def module(rng):
    """A real state dict, with metadata and buffers."""
    net = nn.Sequential(nn.Conv2d(3, 2 + rng.randrange(3), 3), nn.BatchNorm2d(4), nn.Linear(3, 2))
    return net.state_dict()


def arrays(value, name=""):
    """What a reader shall find in `value`, by name."""
    if isinstance(value, torch.Tensor):
        yield name or "tensor", value.detach().clone(memory_format=torch.contiguous_format).contiguous()
    elif isinstance(value, np.ndarray):
        yield name or "tensor", torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))
    elif isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from arrays(item, f"{name}.{key}" if name else str(key))


def state_dict(value):
    """As the reader unwraps it."""
    if isinstance(value, dict):
        value = next((value[k] for k in ("state_dict", "model") if isinstance(value.get(k), dict)), value)
    return {name.removeprefix("module."): x for name, x in arrays(value)}


def numpy_of(value):
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return value.float().numpy() if value.dtype in [torch.bfloat16, *RECENT] else value.numpy()
    if isinstance(value, dict):
        return {str(k): numpy_of(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return type(value)(numpy_of(v) for v in value)
    return value if isinstance(value, (int, str, float, bytes, type(None))) else None


def generated(index):
    """(name, bytes, expected arrays) of file number `index`."""
    rng = random.Random(index)
    form = ["zip", "zip", "legacy", "legacy", "pkl-torch", "pkl-numpy"][index % 6]
    value = module(rng) if rng.random() < 0.15 else contents(rng, 0, [], recent=form == "zip")
    wrap = rng.randrange(6)
    if wrap == 1:
        value = {"model": value if isinstance(value, dict) else {"x": value}, "optimizer": {"lr": 0.1, "m": torch.ones(3)}}
    elif wrap == 2:
        value = {"meta": {"epoch": 3, "config": "a = 1\n", "CLASSES": ("a", "b")}, "state_dict": value}
    elif wrap == 3 and isinstance(value, dict):
        value = {f"module.{k}": v for k, v in value.items()}
    out = io.BytesIO()
    if form == "pkl-torch":
        value = drop_dtypes(value)
        pickle.dump(value, out, protocol=rng.choice([2, 3, 4, 5]))
    elif form == "pkl-numpy":
        value = numpy_of(value)
        pickle.dump(value, out, protocol=rng.choice([2, 3, 4, 5]))
    else:
        if form == "legacy":
            value = drop_dtypes(value)
        protocol = rng.choice([2, 2, 3, 4, 5])
        torch.save(value, out, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
    return f"{index:03}.{form}", out.getvalue(), state_dict(value)


def drop_dtypes(value):
    """torch.float16 itself is pickled by name alone, which plain pickles write as torch.storage does not."""
    if isinstance(value, dict):
        return type(value)((k, drop_dtypes(v)) for k, v in value.items()) if not isinstance(value, collections.Counter) else value
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return type(value)(drop_dtypes(v) for v in value)
    return value


def differences(wanted, found):
    for name in sorted(wanted.keys() | found.keys()):
        a, b = wanted.get(name), found.get(name)
        if a is None or b is None:
            yield f"{name}: {'missing' if b is None else 'unexpected'}"
        elif a.dtype != b.dtype or a.shape != b.shape:
            yield f"{name}: {a.dtype} {list(a.shape)} became {b.dtype} {list(b.shape)}"
        elif bits(a) != bits(b):
            yield f"{name}: other values"


def bits(x):
    return bytes(torch.empty(x.numel(), dtype=x.dtype).copy_(x.flatten()).view(torch.uint8).numpy())


def check(program, count):
    bad = total = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for index in range(count):
            name, data, wanted = generated(index)
            source, there, back = folder / name, folder / "there.safetensors", folder / "back.pth"
            plain = folder / "plain.pkl"
            source.write_bytes(data)
            problems = []
            numpy = not any(str(x.dtype).startswith("torch.float8") for x in wanted.values())
            for arguments in ([source, there], [there, back], [there, plain])[:3 if numpy else 2]:
                run = subprocess.run([program, "convert", *arguments], capture_output=True, text=True)
                if run.returncode:
                    # A file without arrays is refused, and nothing else.
                    if wanted or "has no arrays" not in run.stderr:
                        problems.append(run.stderr.strip())
                    break
            else:
                problems += differences(wanted, load_file(there))
                loaded = torch.load(back, weights_only=True)
                problems += differences(wanted, dict(loaded.get("model", loaded.get("state_dict"))))
                if numpy:
                    loaded = pickle.loads(plain.read_bytes())["model"]
                    wide = {k: x.float() if x.dtype == torch.bfloat16 else x for k, x in wanted.items()}
                    problems += differences(wide, {k: torch.from_numpy(x) for k, x in loaded.items()})
            total += len(wanted)
            bad += bool(problems)
            for problem in problems[:3]:
                print(f"{name}: {problem}")
    print(f"{count} files with {total} arrays, {count - bad} read and written back equal, {bad} not")
    return bad == 0


def fixtures(folder):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 8
    kinds = collections.OrderedDict(
        contiguous=base, transposed=base.t(), column=base[:, 1], row=base[1:2], every_other=base[:, ::2],
        expanded=torch.tensor([1.5, -2.0]).expand(3, 2), scalar=torch.tensor(7), empty=torch.zeros(0, 4),
        parameter=nn.Parameter(base + 1), half=base.half(), bfloat16=base.bfloat16(), double=base.double(),
        int64=base.long(), int32=base.int(), int16=base.short(), int8=base.char(), uint8=base.byte(),
        bool=base > 0.5, complex64=torch.complex(base, -base))
    noted = nn.Parameter(base - 1)
    noted.note = "an attribute"
    kinds["noted"] = noted
    meta = {"epoch": 3, "iter": 80000, "config": "norm_cfg = dict(type='SyncBN')\n",
            "CLASSES": ("wall", "sky"), "PALETTE": [[120, 120, 120], [6, 230, 230]]}
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    mmseg = {"meta": meta, "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()},
             "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 6e-5}]}}
    detectron2 = {"model": dict(net.state_dict()), "__author__": "third_party", "matching_heuristics": True}
    numpy = {"model": {k: v.detach().numpy() for k, v in kinds.items() if v.dtype not in [torch.bfloat16, torch.complex64]},
             "__author__": "someone"}
    recent = {str(d).removeprefix("torch."): base.to(d) for d in RECENT}

    def save(name, value, write):
        with open(folder / name, "wb") as file:
            write(value, file)
        expected = folder / (name.split(".")[0].rstrip("0123456789") + ".safetensors")
        save_file(state_dict(value), expected)
        expected.chmod(0o644)

    def torch_save(zip, protocol):
        return lambda value, file: torch.save(
            value, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zip)

    def dump(protocol):
        return lambda value, file: pickle.dump(value, file, protocol=protocol)

    for protocol in [2, 4, 5]:
        save(f"kinds.zip{protocol}.pth", kinds, torch_save(True, protocol))
        save(f"kinds.legacy{protocol}.pth", kinds, torch_save(False, protocol))
    save("recent.zip.pth", recent, torch_save(True, 2))
    save("mmseg.pth", mmseg, torch_save(True, 2))
    save("detectron2.pkl", detectron2, dump(4))
    for protocol in [0, 1, 2, 3, 4, 5]:
        save(f"numpy{protocol}.pkl", numpy, dump(protocol))
    save("tensor.pth", base, torch_save(True, 2))
    save("nested.pth", {"a": [base, (base + 1, {"b": base})], 3: base}, torch_save(True, 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("fixtures")
    one.add_argument("folder", type=pathlib.Path)
    one = commands.add_parser("check")
    one.add_argument("program")
    one.add_argument("--count", type=int, default=300)
    args = parser.parse_args()
    if args.command == "fixtures":
        fixtures(args.folder)
    elif not check(args.program, args.count):
        sys.exit(1)


if __name__ == "__main__":
    main()
