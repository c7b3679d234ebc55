"""Against Hugging Face's models and torch's own reader, on random seeds; skipped without the extra ``parity``."""

import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error

import lrp_jax
from lrp_jax.weights import read_weights

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
    for source, fields, tolerance in ((saved, {}, 1e-5), (in_memory, told, 1e-9)):
        model, params = lrp_jax.convert(source, **fields)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        ours = model.forward(params, pixels, None, lrp_jax.GRADIENT)[0]
        assert relative_error(ours, logits) <= tolerance
    assert model.config.num_heads == 6


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
    ours, theirs = read_weights(tmp_path / "w.pt"), torch.load(tmp_path / "w.pt", weights_only=True)["state_dict"]
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        expected = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        np.testing.assert_array_equal(ours[name].astype(expected.dtype), expected)
