#!/usr/bin/env python3
"""Saves what each module of a PyTorch model makes of a picture, for `semask-gpu parity`. Needs torch, safetensors.

    tools/save_activations.py mmseg CONFIG.py CHECKPOINT.pth PICTURE OUT.safetensors
        SeMask-FPN, in the environment of the official repository (mmsegmentation 0.x)

    tools/save_activations.py detectron2 CONFIG.yaml MODEL.pth PICTURE OUT.safetensors
        SeMask with MaskFormer, Mask2Former or FaPN, in the folder of its official code (detectron2)

Any other model, from Python:

    from save_activations import saving
    with saving(model, "out.safetensors"):
        model(image)

The first two commands were written from those projects' documentation and have not been run: their packages could not be installed where
this was written. `saving` has, with PyTorch models of the official names (SeMask-T with Semantic FPN, MaskFormer and MSFaPN).

The model runs on the CPU in evaluation mode, in single precision. OUT has the normalised picture as `input`, `[B, 3, H, W]`, as the
module `backbone` got it (the model itself, if it has none), and each module's result under the module's name; of several results each
under `NAME.0`, `NAME.1`, ... Modules that run more than once keep their first result.
"""
import argparse
import contextlib

import torch
from safetensors.torch import save_file


def tensors(value, name):
    """The tensors in what a module returned."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from tensors(item, f"{name}.{i}")


@contextlib.contextmanager
def saving(model, path):
    """Saves to `path` what the modules of `model` make while the context lasts."""
    found = {}

    def keep(name, tensor):
        if tensor.is_floating_point():
            found.setdefault(name, tensor.detach().float().cpu().clone(memory_format=torch.contiguous_format))

    def result(name):
        def hook(module, arguments, value):
            for key, tensor in tensors(value, name):
                keep(key, tensor)
        return hook

    def picture(module, arguments):
        keep("input", next(tensor for _, tensor in tensors(list(arguments), "")))

    modules = {name.removeprefix("module."): module for name, module in model.named_modules() if name not in ["", "module"]}
    hooks = [module.register_forward_hook(result(name)) for name, module in modules.items()]
    hooks.append(modules.get("backbone", model).register_forward_pre_hook(picture))
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()
    if "input" not in found:
        raise SystemExit("no picture went through the model")
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, path)
    print(f"{path}: a picture of {list(found['input'].shape[2:])} and {len(found) - 1} results")


def mmseg(args):
    from mmseg.apis import inference_segmentor, init_segmentor
    model = init_segmentor(args.config, args.weights, device="cpu")
    with saving(model, args.out):
        inference_segmentor(model, args.picture)


def detectron2(args):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.data import transforms
    from detectron2.data.detection_utils import read_image
    from detectron2.modeling import build_model
    from detectron2.projects.deeplab import add_deeplab_config

    # Each of the official folders has one of these.
    package = __import__("mask_former" if args.maskformer else "mask2former")
    cfg = get_cfg()
    add_deeplab_config(cfg)
    (package.add_mask_former_config if args.maskformer else package.add_maskformer2_config)(cfg)
    cfg.merge_from_file(args.config)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    DetectionCheckpointer(model).load(args.weights)
    image = read_image(args.picture, format=cfg.INPUT.FORMAT)
    height, width = image.shape[:2]
    resize = transforms.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    image = resize.get_transform(image).apply_image(image)
    image = torch.as_tensor(image.astype("float32").transpose(2, 0, 1))
    with saving(model, args.out):
        model([{"image": image, "height": height, "width": width}])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for run in (mmseg, detectron2):
        command = commands.add_parser(run.__name__)
        command.set_defaults(run=run)
        for name in ("config", "weights", "picture", "out"):
            command.add_argument(name)
        if run is detectron2:
            command.add_argument("--maskformer", action="store_true", help="the code of MaskFormer, not Mask2Former")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
