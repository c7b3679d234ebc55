"""Small models of other libraries with random weights, and their logits: what the tests of the converter are held to.

    pip install -e ".[parity]" timm torchvision
    python scripts/make_parity_fixtures.py                # into tests/parity/, about 100 KB a model

Every model is the published one but for its size. A file holds the weights under their original names
(``weights/...``), one image ``[H, W, 3]``, the logits of the original implementation in float64, and the fields to pass
to the converter.
Google's checkpoints are written under their names with random weights and run by timm, which reads them by itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import timm
import torch
import torchvision
import transformers

SIZE, PATCH, WIDTH, DEPTH, HEADS, CLASSES = 32, 8, 32, 2, 4, 5
Case = tuple[str, torch.nn.Module, dict[str, Any]]


def draw(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model with every parameter drawn anew, so that none is 0 or 1, in float64."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        around_one = parameter.ndim == 1 and name.endswith(("weight", "gamma", "lambda1"))
        parameter.data = noise * 0.2 + 1 if around_one else noise * (0.5 if parameter.ndim == 1 else 0.2)
    return model.eval()


def timm_models() -> Iterator[Case]:
    """Variants in timm."""
    small = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    variants: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "vit_base_patch16_224": ({}, {}),
        "vit_base_patch16_224-no_qkv_bias": ({"qkv_bias": False}, {}),
        "vit_base_patch16_224-fc_norm": ({"global_pool": "avg"}, {}),
        "deit_tiny_patch16_224": ({}, {}),
        "deit_tiny_distilled_patch16_224": ({}, {}),
        "deit3_small_patch16_224": ({}, {}),
        "vit_small_patch14_dinov2": ({}, {}),
        "vit_small_patch14_reg4_dinov2": ({}, {}),
        "vit_giant_patch14_dinov2": ({}, {}),
        "vit_base_patch16_clip_224": ({}, {}),
        "vit_base_patch16_clip_quickgelu_224": ({}, {"gelu": "quick"}),
        "vit_base_patch16_siglip_224": ({}, {}),
    }
    for name, (options, fields) in variants.items():
        model = timm.create_model(name.partition("-")[0], num_classes=CLASSES, **small, **options)
        yield "timm-" + name, model, {"num_heads": HEADS, **fields}
    headless = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **small)
    yield "timm-vit_small_patch14_dinov2-headless", headless, {"num_heads": HEADS}


def hugging_face_models() -> Iterator[Case]:
    """Those of Hugging Face, under the names that they have in memory."""
    small = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "num_labels": CLASSES}
    small |= {"image_size": SIZE, "patch_size": PATCH}
    mlp = {"intermediate_size": 2 * WIDTH}
    fields = {"num_heads": HEADS}
    yield "hf-vit", transformers.ViTForImageClassification(transformers.ViTConfig(**small, **mlp)), fields
    deit = transformers.DeiTConfig(**small, **mlp)
    yield "hf-deit", transformers.DeiTForImageClassification(deit), fields
    yield "hf-deit-teacher", transformers.DeiTForImageClassificationWithTeacher(deit), fields
    for swiglu in (False, True):
        dinov2 = transformers.Dinov2Config(**small, mlp_ratio=2, use_swiglu_ffn=swiglu)
        yield "hf-dinov2" + "-swiglu" * swiglu, transformers.Dinov2ForImageClassification(dinov2), fields
    registers = transformers.Dinov2WithRegistersConfig(**small, mlp_ratio=2)
    yield "hf-dinov2-registers", transformers.Dinov2WithRegistersForImageClassification(registers), fields


def torchvision_models() -> Iterator[Case]:
    """The one of torchvision."""
    model = torchvision.models.VisionTransformer(SIZE, PATCH, DEPTH, HEADS, WIDTH, 2 * WIDTH, num_classes=CLASSES)
    yield "torchvision-vit", model, {"num_heads": HEADS}


def google_weights(kind: str, seed: int) -> dict[str, np.ndarray]:
    """Random weights under Google's names: ``linen``, ``pre-linen``, ``big-vision`` (scanned blocks) or ``map``."""
    big = kind in ("big-vision", "map")
    attention, second, mlp = ("1", "2", "3") if kind == "pre-linen" or kind == "linen" else ("0", "1", "0")
    per_head = WIDTH // HEADS
    block = {
        **{f"LayerNorm_{i}/{end}": (WIDTH,) for i in ("0", second) for end in ("scale", "bias")},
        **{
            f"MultiHeadDotProductAttention_{attention}/{part}/{end}": shape
            for part in ("query", "key", "value")
            for end, shape in (("kernel", (WIDTH, HEADS, per_head)), ("bias", (HEADS, per_head)))
        },
        f"MultiHeadDotProductAttention_{attention}/out/kernel": (HEADS, per_head, WIDTH),
        f"MultiHeadDotProductAttention_{attention}/out/bias": (WIDTH,),
        f"MlpBlock_{mlp}/Dense_0/kernel": (WIDTH, 2 * WIDTH),
        f"MlpBlock_{mlp}/Dense_0/bias": (2 * WIDTH,),
        f"MlpBlock_{mlp}/Dense_1/kernel": (2 * WIDTH, WIDTH),
        f"MlpBlock_{mlp}/Dense_1/bias": (WIDTH,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/kernel": (PATCH, PATCH, 3, WIDTH),
        "embedding/bias": (WIDTH,),
        "Transformer/encoder_norm/scale": (WIDTH,),
        "Transformer/encoder_norm/bias": (WIDTH,),
        "head/kernel": (WIDTH, CLASSES),
        "head/bias": (CLASSES,),
    }
    patches = (SIZE // PATCH) ** 2
    if big:
        shapes["pos_embedding"] = (1, patches, WIDTH)
    else:
        shapes["Transformer/posembed_input/pos_embedding"] = (1, patches + 1, WIDTH)
        shapes["cls"] = (1, 1, WIDTH)
    if kind == "map":
        pool = {name.replace("LayerNorm_0", "skip"): shape for name, shape in block.items()}
        pool = {name.replace("LayerNorm_1", "LayerNorm_0"): s for name, s in pool.items() if "skip" not in name}
        shapes |= {f"MAPHead_0/{name}": shape for name, shape in pool.items()} | {"MAPHead_0/probe": (1, 1, WIDTH)}
    for i in range(DEPTH):
        shapes |= {f"Transformer/encoderblock_{i}/{name}": shape for name, shape in block.items()}
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape) * 0.2 + name.endswith("scale")).astype(np.float32)
        for name, shape in shapes.items()
    }


def google_models(seed: int) -> Iterator[tuple[str, torch.nn.Module, dict[str, Any], dict[str, np.ndarray]]]:
    """Google's weights, in timm's models, and under their own names as their files have them."""
    small = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    small |= {"mlp_ratio": 2, "num_classes": CLASSES, "act_layer": "gelu_tanh"}
    for kind in ("linen", "pre-linen", "big-vision", "map"):
        weights = google_weights(kind, seed)
        options: dict[str, Any] = {}
        if kind in ("big-vision", "map"):
            pool = "map" if kind == "map" else "avg"
            options = {"class_token": False, "global_pool": pool, "fc_norm": False}
        model = timm.models.VisionTransformer(**small, **options)
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder) / "weights.npz", **weights)
            model.load_pretrained(Path(folder) / "weights.npz")
        if kind == "pre-linen":
            weights = {f"opt/target/{name}": array for name, array in weights.items()}
        if kind == "big-vision":
            scanned = {name.partition("encoderblock_0/")[2] for name in weights if "encoderblock_0/" in name}
            stacks = {
                f"Transformer/encoderblock/{name}": np.stack(
                    [weights.pop(f"Transformer/encoderblock_{i}/{name}") for i in range(DEPTH)]
                )
                for name in sorted(scanned)
            }
            weights |= stacks
        if kind in ("big-vision", "map"):
            weights = {f"params/{name}": array for name, array in weights.items()}
        yield "google-" + kind, model.eval(), {}, weights


def references(seed: int) -> dict[str, np.ndarray]:
    """What becomes of position embeddings of another size, and of a photo."""
    rng = np.random.default_rng(seed)
    embedding = rng.standard_normal((1, 1 + 16, WIDTH)).astype(np.float32)
    arrays: dict[str, np.ndarray] = {"pos_embed": embedding}
    for rows, cols in ((6, 6), (3, 3), (5, 8), (7, 3)):
        resampled = timm.layers.resample_abs_pos_embed(torch.tensor(embedding), [rows, cols])
        arrays[f"resampled/{rows}x{cols}"] = resampled[0].numpy()
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8)).resize(
        (150, 110), PIL.Image.Resampling.BICUBIC
    )
    photo = np.clip(np.asarray(coarse) + rng.normal(0, 12, (110, 150, 3)), 0, 255).astype(np.uint8)
    arrays["photo"] = photo
    picture = PIL.Image.fromarray(photo)
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    timms = timm.data.create_transform(input_size=(3, 64, 64), crop_pct=0.9, interpolation="bicubic", **half)
    arrays["preprocessed/timm"] = timms(picture).numpy().transpose(1, 2, 0)
    faces = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    arrays["preprocessed/hf"] = np.asarray(faces(picture)["pixel_values"][0]).transpose(1, 2, 0)
    imagenet = torchvision.transforms._presets.ImageClassification(crop_size=64, resize_size=73, antialias=True)
    arrays["preprocessed/torchvision"] = imagenet(picture).numpy().transpose(1, 2, 0)
    return arrays


def write_torch_files(folder: Path, seed: int) -> None:
    """What torch writes, in both of its forms, and the same as plain arrays."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(6, 5, generator=generator)
    tensors = {
        "plain": base,
        "transposed": base.T,
        "part": base[1:4, ::2],
        "number": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(base + 1),
        **{
            str(dtype)[6:]: (10 * base).to(dtype)
            for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.uint8)
        },
    }
    nested = {"epoch": 3, "model": torch.nn.Module().state_dict() | tensors, "history": [0.5, {"loss": None}]}
    torch.save(nested, folder / "torch-zip.pth")
    torch.save(nested, folder / "torch-legacy.pth", _use_new_zipfile_serialization=False)
    arrays = {
        n: t.detach().float().numpy() if t.dtype == torch.bfloat16 else t.detach().numpy() for n, t in tensors.items()
    }
    np.savez_compressed(folder / "torch.npz", **arrays)


def main() -> None:
    """Write the fixtures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "tests" / "parity")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    image = rng.standard_normal((SIZE, SIZE, 3)).astype(np.float32)
    pixels = torch.tensor(image.transpose(2, 0, 1)[None]).double()

    def write(name: str, model: torch.nn.Module, weights: dict[str, np.ndarray], fields: dict[str, Any]) -> None:
        with torch.no_grad():
            logits = model.double()(pixels)
        logits = getattr(logits, "logits", logits)[0].numpy()
        path = options.output / f"{name}.npz"
        arrays = {f"weights/{n}": a for n, a in weights.items()}
        np.savez_compressed(path, image=image, logits=logits, fields=json.dumps(fields), **arrays)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} KB, logits {np.round(logits[:3], 3)}")

    for cases in (timm_models(), hugging_face_models(), torchvision_models()):
        for name, model, fields in cases:
            draw(model, options.seed)
            write(name, model, {n: p.numpy() for n, p in model.state_dict().items()}, fields)
            if name.startswith("hf-"):
                with tempfile.TemporaryDirectory() as folder:
                    model.float().save_pretrained(folder)
                    saved = timm.models.load_state_dict(f"{folder}/model.safetensors")
                write(name + "-saved", model, {n: p.numpy() for n, p in saved.items()}, fields)
    write_torch_files(options.output, options.seed)
    np.savez_compressed(options.output / "references.npz", **references(options.seed))
    for name, model, fields, weights in google_models(options.seed):
        write(name, model, weights, fields)


if __name__ == "__main__":
    main()
