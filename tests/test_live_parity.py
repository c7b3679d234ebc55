"""Against Hugging Face's models and torch's own reader, on random seeds; skipped without the extra ``parity``."""

import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import GOLDEN, relative_error, small_images, small_model
from PIL import Image

import lrp_jax
from lrp_jax import metrics
from lrp_jax.walk import forward
from lrp_jax.weights import read_weights
from lrp_jax.weights.convert import convert_with_summary

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("default")

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_labels": 7, "image_size": 24}
SMALL |= {"patch_size": 8}
MODELS = {
    "ViT": {"intermediate_size": 64, "qkv_bias": False},
    "DeiT": {"intermediate_size": 64, "hidden_act": "gelu_new"},
    "ViTMSN": {"intermediate_size": 64},
    "Dinov2": {"use_swiglu_ffn": True},
    "Dinov2WithRegisters": {"num_register_tokens": 3, "mlp_ratio": 2},
}


@pytest.mark.parametrize("name", [*MODELS, "DeiT-teacher"])
def test_a_saved_model_has_the_logits_of_the_original(name, tmp_path):
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    torch.manual_seed(seed)
    family, _, teacher = name.partition("-")
    config = getattr(transformers, f"{family}Config")(**SMALL, **MODELS[family])
    kind = f"{family}ForImageClassification{'WithTeacher' if teacher else ''}"
    original = getattr(transformers, kind)(config).eval()
    for parameter in original.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.3
    original.save_pretrained(tmp_path)
    image = torch.randn(1, 3, 24, 24, dtype=torch.float64)
    with torch.no_grad():
        logits = original.double()(image).logits[0].numpy()
    pixels = jnp.asarray(image[0].permute(1, 2, 0).numpy())

    saved, in_memory = tmp_path / "model.safetensors", {n: p.numpy() for n, p in original.state_dict().items()}
    told = {"num_heads": 6, "gelu": "tanh" if family == "DeiT" else "exact"}
    if family == "ViTMSN":  # whose names are those of ViT, and its epsilon another
        told |= {"norm_epsilon": 1e-6, "final_norm_epsilon": 1e-6}
    for source, fields, tolerance in ((saved, {}, 1e-5), (in_memory, told, 1e-9)):
        model, params = lrp_jax.convert(source, **fields)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        ours = forward(model, params, pixels, lrp_jax.GRADIENT)
        assert relative_error(ours, logits) <= tolerance
    assert model.config.num_heads == 6


SQUARE, WIDE = {"height": 24, "width": 24}, {"height": 16, "width": 32}
PROCESSORS = [
    ("ViT", {"size": SQUARE}, {}),
    ("ViT", {"size": WIDE, "do_rescale": False, "image_mean": [90.0] * 3, "image_std": [50.0] * 3}, {}),
    ("ViT", {"size": SQUARE, "do_normalize": False, "resample": 0}, {"hidden_act": "quick_gelu"}),
    ("ViT", {"size": SQUARE, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}, {"layer_norm_eps": 1e-3}),
    ("DeiT", {"size": {"height": 30, "width": 28}, "crop_size": SQUARE, "resample": 1}, {}),
    ("DeiT", {"size": SQUARE, "do_center_crop": False}, {"hidden_act": "gelu_pytorch_tanh"}),
    ("Bit", {"size": {"shortest_edge": 28}, "crop_size": SQUARE}, {}),
    ("CLIP", {"size": {"shortest_edge": 32}, "crop_size": WIDE}, {"hidden_act": "gelu_fast"}),
]


@pytest.mark.parametrize(("name", "settings", "fields"), PROCESSORS)
def test_a_folder_of_transformers_tells_everything(name, settings, fields, tmp_path):
    """Pixels, logits and probabilities are the original's, of a picture that is not square, and nothing is assumed."""
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    torch.manual_seed(seed)
    crop = settings["crop_size"] if "crop_size" in settings else settings["size"]
    size = [crop["height"], crop["width"]]
    labels = {i: f"label {i}" for i in range(7)}
    config = transformers.ViTConfig(
        **SMALL | {"image_size": size},
        intermediate_size=64,
        id2label=labels,
        problem_type="multi_label_classification",
        **fields,
    )
    original = transformers.ViTForImageClassification(config).eval()
    for parameter in original.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.3
    original.save_pretrained(tmp_path)
    # Before transformers 5 the one that computes with Pillow has no suffix.
    kind = getattr(transformers, f"{name}ImageProcessorPil", None) or getattr(transformers, f"{name}ImageProcessor")
    processor = kind(**settings)
    processor.save_pretrained(tmp_path)

    found = convert_with_summary(tmp_path / "model.safetensors")
    assert found.notes == []
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 90, 3), np.uint8))
    inputs = processor(picture, return_tensors="pt")["pixel_values"]
    pixels = lrp_jax.preprocess(picture, found.model.config)
    np.testing.assert_allclose(pixels, inputs[0].permute(1, 2, 0), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        logits = original.double()(inputs.double()).logits[0]
    params = jax.tree.map(lambda p: p.astype(jnp.float64), found.params)
    ours = forward(found.model, params, jnp.asarray(inputs[0].permute(1, 2, 0).double().numpy()))
    assert relative_error(ours, logits.numpy()) <= 1e-5
    np.testing.assert_allclose(found.model.config.probabilities(ours), logits.sigmoid(), atol=1e-4)
    assert found.model.config.class_names == tuple(labels.values())


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_read_as_torch_reads_them(tmp_path, zipped):
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
    base = torch.randn(7, 5)
    state = {
        "a": base,
        "b": base.T,
        "c": base[2:, ::3],
        "d": base.bfloat16(),
        "e": torch.arange(4),
        "f": torch.tensor(1.5),
    }
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    ours, theirs = (
        read_weights(tmp_path / "w.pt")["state_dict"],
        torch.load(tmp_path / "w.pt", weights_only=True)["state_dict"],
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        expected = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        np.testing.assert_array_equal(ours[name].astype(expected.dtype), expected)


class Twin(torch.nn.Module):
    """The logits of a model of one block, in torch, for captum."""

    def __init__(self, params, config):
        super().__init__()
        self.config = config
        for path, value in jax.tree_util.tree_leaves_with_path(params):
            name = "_".join(key.key for key in path)
            self.register_buffer(name, torch.from_numpy(np.array(value)))

    def forward(self, images):
        functional, config = torch.nn.functional, self.config
        p, width, heads = config.patch_size[0], config.width, config.num_heads

        def norm(x, name):
            weight, bias = (getattr(self, f"{name}_{part}").reshape(width) for part in ("scale", "bias"))
            return functional.layer_norm(x, (width,), weight, bias, 1e-6)

        def dense(x, name):
            return x @ getattr(self, f"{name}_kernel").squeeze(0) + getattr(self, f"{name}_bias").squeeze(0)

        n, channels, height, _ = images.shape
        rows = height // p
        patches = images.reshape(n, channels, rows, p, rows, p).permute(0, 2, 4, 3, 5, 1).reshape(n, rows * rows, -1)
        x = dense(patches, "patch_embed")
        x = torch.cat([self.cls_token.expand(n, 1, width), x], dim=1) + self.pos_embed
        qkv = dense(norm(x, "blocks_norm1"), "blocks_attn_qkv").reshape(n, -1, 3, heads, width // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1)
        x = x + dense((attention @ v).transpose(1, 2).reshape(n, -1, width), "blocks_attn_proj")
        hidden = functional.gelu(dense(norm(x, "blocks_norm2"), "blocks_mlp_fc1"))
        x = x + dense(hidden, "blocks_mlp_fc2")
        return dense(norm(x[:, 0], "norm"), "head")


def test_methods_of_the_gradient_and_occlusion_are_those_of_captum():
    captum = pytest.importorskip("captum.attr")
    model, params = small_model(depth=1)
    twin = Twin(params, model.config)
    images, targets = small_images(2), np.array([3, 1])
    inputs, classes = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2), torch.from_numpy(targets)

    def ours(method, **options):
        explanation = lrp_jax.explain(model, params, images, targets, method=method, **options)
        assert relative_error(explanation.logits, twin(inputs)) <= 1e-10
        return explanation.relevance[:, 0]

    theirs = captum.Saliency(twin).attribute(inputs, target=classes).amax(1)
    assert relative_error(ours("saliency"), theirs) <= 1e-9
    theirs = captum.InputXGradient(twin).attribute(inputs, target=classes).sum(1)
    assert relative_error(ours("input_x_gradient"), theirs.detach()) <= 1e-9
    theirs = captum.IntegratedGradients(twin).attribute(inputs, 0.25, target=classes, n_steps=20).sum(1)
    assert (
        relative_error(ours("integrated_gradients", baseline=0.25, steps=20), theirs) <= 1e-7
    )  # its points are float32
    for window, stride in (((8, 8), (4, 4)), ((5, 5), (3, 3)), ((6, 4), (5, 1))):
        shapes = {"sliding_window_shapes": (3, *window), "strides": (3, *stride)}
        theirs = captum.Occlusion(twin).attribute(inputs, target=classes, baselines=0.25, **shapes)[:, 0]
        maps = ours("occlusion", window=window, stride=stride, baseline=0.25)
        assert relative_error(maps, theirs) <= 1e-6  # its maps are float32


def test_perturbation_equals_the_authors(golden_model):
    """With torch's choice among pixels of equal relevance, which is its own."""
    with np.load(GOLDEN / "perturbation.npz") as file:
        golden = dict(file)
    images = (golden["images"].transpose(0, 2, 3, 1) - 0.5) / 0.5
    maps = np.asarray(lrp_jax.heatmaps(golden["relevance"], (32, 32))).reshape(6, -1)
    accuracy = {sign: [(golden["clean_logits"].argmax(axis=1) == golden["target"]).mean()] for sign in (1, -1)}
    for sign, name in ((1, "positive"), (-1, "negative")):
        for step in range(1, 10):
            count, hits = int(1024 * (step / 10)), []
            for image, flat, target, expected in zip(
                images, maps, golden["target"], golden[f"{name}_logits"][step - 1], strict=True
            ):
                first = torch.topk(torch.from_numpy(sign * flat), count)[1].numpy()
                places = np.full(1024, 1024)
                places[first] = np.arange(count)
                (logits,) = metrics.perturbed_logits(
                    *golden_model, image, places.reshape(32, 32), np.array([count]), np.full(3, -1.0)
                )
                np.testing.assert_allclose(logits, expected, atol=1e-9)
                hits.append(logits.argmax() == target)
            accuracy[sign].append(np.mean(hits))
        assert metrics.area_under_curve(accuracy[sign]) == pytest.approx(golden[f"{name}_auc"], abs=1e-12)
