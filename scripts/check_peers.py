"""What docs/peers.md says was run: small models with random weights, explained by other libraries.

    pip install torch torchvision timm "transformers==4.52.4" autolrp captum grad-cam hilrp lxt zennit
    python scripts/check_peers.py                                  # those that are installed, a row each
    python scripts/check_peers.py zennit lxt                       # some
    pip install einops
    python scripts/check_peers.py --authors ../Transformer-Explainability    # and the code of the paper's authors

Every library runs in a process of its own, because some change the classes of PyTorch until the process ends.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

try:
    import timm
    import torch
    import torchvision
    import transformers
    from torch import Tensor, nn
except ImportError as error:
    sys.exit(f'{error.name} is needed: pip install torch torchvision timm "transformers==4.52.4", and a peer.')

warnings.filterwarnings("ignore")

SIZE, PATCH, WIDTH, DEPTH, HEADS, CLASSES = 32, 8, 32, 2, 2, 5


class Logits(nn.Module):
    """A model of Hugging Face that returns its logits: of an image, or of the next token after embeddings."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C]``."""
        if isinstance(self.model, transformers.GPT2LMHeadModel):
            return self.model(inputs_embeds=x, use_cache=False).logits[:, -1]
        return self.model(x).logits


def of_timm() -> nn.Module:
    """A ViT."""
    sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    return timm.create_model("vit_base_patch16_224", num_classes=CLASSES, **sizes)


def of_torchvision() -> nn.Module:
    """A ViT."""
    return torchvision.models.VisionTransformer(SIZE, PATCH, DEPTH, HEADS, WIDTH, 2 * WIDTH, num_classes=CLASSES)


def of_hugging_face() -> nn.Module:
    """A ViT."""
    sizes = {"image_size": SIZE, "patch_size": PATCH, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH}
    layers = {"num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "num_labels": CLASSES}
    return Logits(transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **layers)))


def swin() -> nn.Module:
    """A hierarchical transformer, of timm."""
    sizes = {"img_size": SIZE, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=CLASSES, **sizes)


class Convolutional(nn.Module):
    """A network without attention, of modules that all have rules in captum."""

    def __init__(self):
        super().__init__()
        first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.features = nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C]``."""
        return self.head(self.features(x).flatten(1))


def gpt2() -> nn.Module:
    """A language model; what is explained are its embeddings."""
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS}
    return Logits(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)))


MODELS = {
    "timm ViT": of_timm,
    "torchvision ViT": of_torchvision,
    "Hugging Face ViT": of_hugging_face,
    "timm Swin": swin,
    "convolutional": Convolutional,
    "GPT-2": gpt2,
}


def model_and_input(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A model whose parameters are all drawn, and two examples."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    shape = (2, 6, WIDTH) if name == "GPT-2" else (2, 3, SIZE, SIZE)
    return model.eval().to(dtype), torch.randn(shape, dtype=dtype)


class Peer:
    """How a library is asked for a map of each example: ``maps(name, model, x, weights of the logits [B, C])``."""

    vit = "timm ViT"

    def maps(self, name: str, model: nn.Module, x: Tensor, w: Tensor) -> Tensor:
        """In the way that its own documentation shows."""
        raise NotImplementedError

    def several(self, name: str, model: nn.Module, x: Tensor, ws: list[Tensor]) -> list[Tensor]:
        """Maps of several classes, on as few forward passes as can be."""
        return [self.maps(name, model, x, w) for w in ws]

    def with_graph(self, name: str, model: nn.Module, x: Tensor, w: Tensor) -> Tensor:
        """A map that can be differentiated, where there is a way."""
        return self.maps(name, model, x, w)


class Zennit(Peer):
    """Rules by type of module."""

    def maps(self, name: str, model: nn.Module, x: Tensor, w: Tensor, create_graph: bool = False) -> Tensor:
        """One call of an attributor."""
        from zennit.attribution import Gradient
        from zennit.composites import EpsilonPlus

        return Gradient(model, EpsilonPlus(), create_graph=create_graph)(x, w)[1]

    def several(self, name: str, model: nn.Module, x: Tensor, ws: list[Tensor]) -> list[Tensor]:
        """Backward passes of one graph, within the context of the composite."""
        from zennit.composites import EpsilonPlus

        x = x.clone().requires_grad_()
        with EpsilonPlus().context(model) as modified:
            y = modified(x)
            return [torch.autograd.grad(y, x, w, retain_graph=True)[0] for w in ws]

    def with_graph(self, name: str, model: nn.Module, x: Tensor, w: Tensor) -> Tensor:
        """Its own option."""
        return self.maps(name, model, x, w, create_graph=True)


class ZennitGradient(Zennit):
    """The same attributor without rules."""

    def maps(self, name: str, model: nn.Module, x: Tensor, w: Tensor, create_graph: bool = False) -> Tensor:
        """The gradient of the pixels."""
        from zennit.attribution import Gradient

        return Gradient(model, create_graph=create_graph)(x, w)[1]

    def several(self, name: str, model: nn.Module, x: Tensor, ws: list[Tensor]) -> list[Tensor]:
        """Backward passes of one graph."""
        x = x.clone().requires_grad_()
        y = model(x)
        return [torch.autograd.grad(y, x, w, retain_graph=True)[0] for w in ws]


class Lxt(Peer):
    """Patched classes, with zennit's gamma rule where a model of images has layers."""

    vit = "torchvision ViT"

    def output(self, name: str, model: nn.Module, x: Tensor) -> Tensor:
        """Logits under the rules."""
        from lxt.efficient import monkey_patch, monkey_patch_zennit
        from zennit.composites import LayerMapComposite
        from zennit.rules import Gamma

        modules = {
            "timm ViT": "timm.models.vision_transformer",
            "torchvision ViT": "torchvision.models.vision_transformer",
            "Hugging Face ViT": "transformers.models.vit.modeling_vit",
            "timm Swin": "timm.models.swin_transformer",
            "GPT-2": "transformers.models.gpt2.modeling_gpt2",
        }
        if name in modules:
            monkey_patch(importlib.import_module(modules[name]))
        monkey_patch_zennit()
        if name == "GPT-2":
            return model(x)
        LayerMapComposite([(nn.Conv2d, Gamma(0.25)), (nn.Linear, Gamma(0.05))]).register(model)
        return model(x)

    def several(self, name: str, model: nn.Module, x: Tensor, ws: list[Tensor]) -> list[Tensor]:
        """Input times gradient, of one graph."""
        x = x.clone().requires_grad_()
        y = self.output(name, model, x)
        return [x * torch.autograd.grad(y, x, w, retain_graph=True)[0] for w in ws]

    def maps(self, name: str, model: nn.Module, x: Tensor, w: Tensor) -> Tensor:
        """One of them."""
        return self.several(name, model, x, [w])[0].detach()

    def with_graph(self, name: str, model: nn.Module, x: Tensor, w: Tensor) -> Tensor:
        """By autograd, and without zennit's rules: with them, it is an error."""
        from lxt.efficient import monkey_patch

        monkey_patch(torchvision.models.vision_transformer)
        x = x if x.requires_grad else x.clone().requires_grad_()
        return x * torch.autograd.grad(model(x), x, w, create_graph=True)[0]


class Captum(Peer):
    """Methods of gradients."""

    def maps(self, name: str, model: nn.Module, x: Tensor, w: Tensor) -> Tensor:
        """A forward function of one number an example serves any direction."""
        from captum.attr import InputXGradient

        return InputXGradient(lambda x: (model(x) * w).sum(1)).attribute(x.clone().requires_grad_())


class CaptumLrp(Peer):
    """Its LRP, which takes classes alone."""

    vit = "convolutional"

    def maps(self, name: str, model: nn.Module, x: Tensor, w: Tensor) -> Tensor:
        """One class an example."""
        from captum.attr import LRP

        if not _are_classes(w):
            raise ValueError("takes classes")
        return LRP(model).attribute(x.clone().requires_grad_(), target=w.argmax(1))


class AutoLrp(Peer):
    """The graph of autograd, by AttnLRP."""

    def several(self, name: str, model: nn.Module, x: Tensor, ws: list[Tensor]) -> list[Tensor]:
        """One forward pass."""
        import autolrp

        wrapped = autolrp.tensor(x)
        y = model(wrapped)
        found = []
        for w in ws:
            (y * w).sum().lrp(config=autolrp.LRPConfig.attnlrp())
            found.append(wrapped.relevance.clone())
        return found

    def maps(self, name: str, model: nn.Module, x: Tensor, w: Tensor) -> Tensor:
        """One of them."""
        return self.several(name, model, x, [w])[0]


class HiLrp(Peer):
    """One call, for models of timm."""

    def maps(self, name: str, model: nn.Module, x: Tensor, w: Tensor) -> Tensor:
        """One class of the first image."""
        import hilrp

        if not _are_classes(w):
            raise ValueError("takes classes")
        return hilrp.attribute(model, x, target=int(w[0].argmax()))["pixel_map"][None]


class GradCam(Peer):
    """At the last block, or convolution."""

    def maps(self, name: str, model: nn.Module, x: Tensor, w: Tensor) -> Tensor:
        """A target is a function of an image's logits."""
        from pytorch_grad_cam import GradCAM

        def tokens(a: Tensor) -> Tensor:
            grid = SIZE // PATCH
            return a[:, -grid * grid :].reshape(len(a), grid, grid, -1).permute(0, 3, 1, 2)

        layers: dict[str, tuple[Callable[[Any], nn.Module], Callable[[Tensor], Tensor] | None]] = {
            "timm ViT": (lambda m: m.blocks[-1].norm1, tokens),
            "torchvision ViT": (lambda m: m.encoder.layers[-1].ln_1, tokens),
            "Hugging Face ViT": (lambda m: m.model.vit.encoder.layer[-1].layernorm_before, tokens),
            "timm Swin": (lambda m: m.layers[-1].blocks[-1].norm1, lambda a: a.permute(0, 3, 1, 2)),
            "convolutional": (lambda m: m.features[3], None),
            "GPT-2": (lambda m: m.model.transformer.h[-1].ln_1, None),
        }
        layer, reshape = layers[name]
        targets = [functools.partial(lambda row, y: (y * row).sum(), row) for row in w]
        return torch.as_tensor(GradCAM(model, [layer(model)], reshape_transform=reshape)(x, targets))


class Authors(Peer):
    """The code of the paper's authors, whose model is its own; its calls of CUDA are answered by the CPU."""

    def maps(self, name: str, model: nn.Module, x: Tensor, w: Tensor) -> Tensor:
        """One class."""
        from baselines.ViT import ViT_explanation_generator, ViT_LRP

        if name != "timm ViT":
            raise ValueError("its own model class")
        if not _are_classes(w):
            raise ValueError("takes classes")
        Tensor.cuda = lambda self, *args, **options: self  # type: ignore[method-assign]
        sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
        own = ViT_LRP.VisionTransformer(num_classes=CLASSES, qkv_bias=True, **sizes).to(x.dtype)
        own.load_state_dict(model.state_dict())
        own.register_forward_hook(lambda *_: setattr(model, "passes", getattr(model, "passes", 0) + 1))
        index = int(w[0].argmax())
        return ViT_explanation_generator.LRP(own).generate_LRP(x.clone().requires_grad_(), index).detach()


PEERS = {
    "lxt": Lxt,
    "zennit": Zennit,
    "zennit.Gradient": ZennitGradient,
    "captum": Captum,
    "captum.LRP": CaptumLrp,
    "autoLRP": AutoLrp,
    "hilrp": HiLrp,
    "grad-cam": GradCam,
    "authors": Authors,
}


def _are_classes(w: Tensor) -> bool:
    return bool(((w == 0) | (w == 1)).all()) and bool((w.sum(1) == 1).all())


def one_hot(classes: list[int], width: int, dtype: torch.dtype) -> Tensor:
    """Weights of the logits that stand for a class each."""
    return nn.functional.one_hot(torch.tensor(classes), width).to(dtype)


def explains(peer: Peer, name: str) -> str:
    """Is there a finite map that is not 0?"""
    model, x = model_and_input(name)
    w = one_hot([1], model(x).shape[1], x.dtype)
    found = peer.maps(name, model, x[:1], w)
    return "yes" if torch.isfinite(found).all() and found.abs().max() > 0 else "no: not finite, or 0"


def batches(peer: Peer) -> str:
    """Are the maps of two images in one call those of two calls?"""
    model, x = model_and_input(peer.vit)
    w = one_hot([1, 3], CLASSES, x.dtype)
    both = peer.maps(peer.vit, model, x, w)
    each = torch.cat([peer.maps(peer.vit, model, x[i : i + 1], w[i : i + 1]) for i in (0, 1)])
    if both.shape != each.shape:
        return f"no: {list(both.shape)}, not {list(each.shape)}"
    scales = [float((a * b).sum() / (b * b).sum()) for a, b in zip(both, each, strict=True)]
    scaled = torch.stack([a * scale for a, scale in zip(each, scales, strict=True)])
    error = float((both - scaled).abs().max() / both.abs().max())
    return f"{'yes' if error < 1e-4 else 'no'}: differ by {error:.0e}, scaled by {scales[0]:.4g} and {scales[1]:.4g}"


def classes_on_one_pass(peer: Peer) -> str:
    """How many forward passes do three classes of an image take, and are the maps those of three calls?"""
    model, x = model_and_input(peer.vit)
    ws = [one_hot([k], CLASSES, x.dtype) for k in range(3)]
    each = [peer.maps(peer.vit, model, x[:1], w) for w in ws]
    model.passes = 0
    handle = model.register_forward_hook(lambda *_: setattr(model, "passes", model.passes + 1))
    found = peer.several(peer.vit, model, x[:1], ws)
    handle.remove()
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, each, strict=True))
    return f"{model.passes} forward passes, maps differ by {error:.0e}"


def directions(peer: Peer) -> str:
    """The logit of one class minus that of another."""
    model, x = model_and_input(peer.vit)
    w = one_hot([1], CLASSES, x.dtype) - one_hot([3], CLASSES, x.dtype)
    found = peer.maps(peer.vit, model, x[:1], w)
    return "yes" if torch.isfinite(found).all() and found.abs().max() > 0 else "no"


def in_float64(peer: Peer) -> str:
    """Is the map of a model in float64 one too, and more exact than that of float32?"""
    model, x = model_and_input(peer.vit, torch.float64)
    w = one_hot([1], CLASSES, x.dtype)
    found = peer.maps(peer.vit, model, x[:1], w)
    low = peer.maps(peer.vit, model.float(), x[:1].float(), w.float()).double()
    error = float((found - low).abs().max() / found.abs().max())
    return f"{str(found.dtype).removeprefix('torch.')}, differs from float32 by {error:.0e}"


def gradient_of_maps(peer: Peer) -> str:
    """Is the derivative of the map along a direction that of finite differences, of one of three steps?"""
    model, x = model_and_input(peer.vit, torch.float64)
    x, w = x[:1], one_hot([1], CLASSES, torch.float64)
    generator = torch.Generator().manual_seed(1)
    along = torch.randn(x.shape, generator=generator, dtype=x.dtype)

    def value(x: Tensor) -> Tensor:
        found = peer.with_graph(peer.vit, model, x, w)
        return (found * torch.linspace(-1, 1, found.numel(), dtype=x.dtype).reshape(found.shape)).sum()

    leaf, steps = x.clone().requires_grad_(), (1e-6, 1e-7, 1e-8)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # others have no second derivative
        y = value(leaf)
        if not y.requires_grad:
            return "no: detached"
        found = float((torch.autograd.grad(y, leaf)[0] * along).sum())
        differences = [float((value(x + s * along) - value(x - s * along)).detach()) / (2 * s) for s in steps]
    expected = min(differences, key=lambda difference: abs(difference - found))
    return f"{'yes' if abs(found - expected) < 1e-3 * abs(expected) else 'no'}: {found:.4g}, should be {expected:.4g}"


def leaves_pytorch(peer: Peer) -> str:
    """Is the gradient of a new model of the same classes after a map what it was before?"""

    def gradient() -> Tensor:
        model, x = model_and_input(peer.vit, seed=7)
        x = x.requires_grad_()
        return torch.autograd.grad(model(x)[:, 1].sum(), x)[0]

    before = gradient()
    explains(peer, peer.vit)
    error = float((gradient() - before).abs().max() / before.abs().max())
    return f"{'yes' if error < 1e-5 else 'no'}: gradient differs by {error:.0e}"


def rows(peer: Peer) -> dict[str, Callable[[], str]]:
    """The checks by name; what leaves PyTorch as it was is seen first."""
    checks = {"leaves PyTorch as it was": leaves_pytorch, "batches": batches, "three classes": classes_on_one_pass}
    checks |= {"any direction": directions, "float64": in_float64, "gradient of maps": gradient_of_maps}
    named = {name: functools.partial(check, peer) for name, check in checks.items()}
    return named | {name: functools.partial(explains, peer, name) for name in MODELS}


def check(peer: str) -> None:
    """Print a line a check."""
    for row, run in rows(PEERS[peer]()).items():
        try:
            result = run()
        except Exception as error:
            result = f"no: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(f"{peer:15} {row:24} {result[:150]}", flush=True)


def main() -> None:
    """All, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"{', '.join(PEERS)}; default all but authors")
    parser.add_argument("--authors", metavar="FOLDER", help="a checkout of hila-chefer/Transformer-Explainability")
    options = parser.parse_args()
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    chosen = options.peers or [name for name in PEERS if name != "authors"]
    if options.authors:
        sys.path.insert(0, options.authors)
        chosen = list(dict.fromkeys([*chosen, "authors"])) if not options.peers else chosen
    if len(chosen) == 1:
        torch.set_num_threads(1)
        check(chosen[0])
        return
    for name in chosen:
        folder = ["--authors", options.authors] if options.authors else []
        subprocess.run([sys.executable, __file__, name, *folder], check=False)


if __name__ == "__main__":
    main()
