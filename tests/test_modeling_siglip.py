"""The image encoder against transformers, against the formulas of the papers, and against wrong input."""

import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_close, randomise

from paligemma.modeling_siglip import (
    SiglipAttention,
    SiglipMLP,
    SiglipVisionConfig,
    SiglipVisionEmbeddings,
    SiglipVisionModel,
)

SHAPES = {
    "even": {"hidden_size": 32, "num_attention_heads": 4, "image_size": 20, "patch_size": 5},
    "one head": {"hidden_size": 24, "num_attention_heads": 1, "image_size": 16, "patch_size": 4},
    "head of odd width": {"hidden_size": 36, "num_attention_heads": 4, "image_size": 14, "patch_size": 7},
    "as many heads as features": {"hidden_size": 6, "num_attention_heads": 6, "image_size": 12, "patch_size": 3},
    "a border is left over": {"hidden_size": 32, "num_attention_heads": 2, "image_size": 21, "patch_size": 5},
    "one patch": {"hidden_size": 16, "num_attention_heads": 2, "image_size": 9, "patch_size": 9},
    "grey, deep": {
        "hidden_size": 16, "num_attention_heads": 2, "image_size": 13, "patch_size": 2, "num_channels": 1,
        "num_hidden_layers": 5,
    },
}  # fmt: skip


def make_pair(attention, **values):
    values = {"intermediate_size": 40, "num_hidden_layers": 2, **values}
    theirs = transformers.SiglipVisionModel._from_config(
        transformers.SiglipVisionConfig(**values, vision_use_head=False), attn_implementation="eager"
    )
    randomise(theirs)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    ours = SiglipVisionModel(SiglipVisionConfig(**values, attention=attention))
    prefix = "" if any(name.startswith("vision_model.") for name in theirs.state_dict()) else "vision_model."
    ours.load_state_dict({prefix + name: tensor.clone() for name, tensor in theirs.state_dict().items()})
    return ours.eval(), theirs.eval(), prefix


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", SHAPES)
def test_features_and_gradients_are_those_of_transformers(name, attention):
    values = SHAPES[name]
    ours, theirs, prefix = make_pair(attention, **values)
    size, channels = values["image_size"], values.get("num_channels", 3)
    pixels = torch.rand(3, channels, size, size) * 2 - 1
    features, expected = ours(pixels), theirs(pixels).last_hidden_state
    assert features.shape == (3, (size // values["patch_size"]) ** 2, values["hidden_size"])
    assert_close(features, expected)
    weights = torch.randn_like(features) / features.numel() ** 0.5  # so that gradients are of the order of 1
    (features * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {prefix + key: parameter.grad for key, parameter in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        one_patch = features.shape[1] == 1
        if key.endswith("k_proj.bias") or (one_patch and ("q_proj" in key or "k_proj" in key)):
            # Zero up to rounding: the softmax cancels what all scores of a row share, and one score is always 1.
            torch.testing.assert_close(parameter.grad, gradients[key], atol=1e-5, rtol=0)
        else:
            assert_close(parameter.grad, gradients[key])


def test_patch_embedding_is_one_linear_map_of_each_patch():
    """Dosovitskiy et al. 2020, equation 1, written as a loop over patches in float64."""
    config = SiglipVisionConfig(hidden_size=10, num_attention_heads=2, image_size=13, patch_size=4)
    embeddings = SiglipVisionEmbeddings(config).double()
    pixels = torch.randn(2, 3, 13, 13, dtype=torch.float64)
    kernel = embeddings.patch_embedding.weight.flatten(1)  # [D, C * P * P]
    output = embeddings(pixels)
    assert output.shape == (2, 9, 10)
    for row in range(3):
        for column in range(3):
            patch = pixels[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
            token = 3 * row + column
            expected = patch @ kernel.T + embeddings.patch_embedding.bias + embeddings.position_embedding.weight[token]
            torch.testing.assert_close(output[:, token], expected, atol=1e-12, rtol=0)


def test_the_border_that_makes_no_whole_patch_is_not_seen():
    config = SiglipVisionConfig(hidden_size=8, num_attention_heads=2, image_size=21, patch_size=5, num_hidden_layers=1)
    model = SiglipVisionModel(config)
    pixels = torch.randn(1, 3, 21, 21)
    changed = pixels.clone()
    changed[:, :, 20], changed[:, :, :, 20] = 5.0, -5.0
    assert torch.equal(model(pixels), model(changed))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_the_formula_of_the_paper(attention):
    """softmax(Q K^T / sqrt(d)) V for each head (Vaswani et al. 2017, equation 1), with numpy in float64."""
    config = SiglipVisionConfig(hidden_size=12, num_attention_heads=3, attention=attention)
    module = SiglipAttention(config).eval()
    hidden = torch.randn(2, 5, 12)
    output, weights = module(hidden)

    def linear(layer, x):
        return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()

    x = hidden.double().numpy()
    q, k, v = (linear(layer, x) for layer in (module.q_proj, module.k_proj, module.v_proj))
    heads, expected_weights = [], []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        scores = np.exp(q[..., part] @ k[..., part].transpose(0, 2, 1) / math.sqrt(4))
        expected_weights.append(scores / scores.sum(-1, keepdims=True))
        heads.append(expected_weights[-1] @ v[..., part])
    expected = linear(module.out_proj, np.concatenate(heads, axis=-1))
    np.testing.assert_allclose(output.detach().numpy(), expected, atol=1e-6)
    if attention == "eager":
        np.testing.assert_allclose(weights.detach().numpy(), np.stack(expected_weights, axis=1), atol=1e-6)
    else:
        assert weights is None


def test_mlp_bends_with_the_tanh_form_of_gelu():
    """Hendrycks & Gimpel 2016, section 2: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    mlp = SiglipMLP(SiglipVisionConfig(hidden_size=6, num_attention_heads=2, intermediate_size=6)).double()
    with torch.no_grad():
        for layer in (mlp.fc1, mlp.fc2):
            layer.weight.copy_(torch.eye(6))
            layer.bias.zero_()
    x = torch.linspace(-4, 4, 6, dtype=torch.float64)
    expected = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(mlp(x), expected, atol=1e-12, rtol=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), attention=st.sampled_from(["eager", "sdpa"]))
def test_without_positions_the_order_of_patches_does_not_matter(seed, attention):
    """Permuting the tokens permutes the result: attention and MLP know no order (float64)."""
    generator = torch.Generator().manual_seed(seed)
    config = SiglipVisionConfig(
        hidden_size=8, num_attention_heads=2, intermediate_size=12, num_hidden_layers=2, image_size=12, patch_size=4,
        attention=attention,
    )  # fmt: skip
    encoder = SiglipVisionModel(config).double().vision_model.encoder
    tokens = torch.randn(2, 9, 8, generator=generator, dtype=torch.float64)
    order = torch.randperm(9, generator=generator)
    # The softmax is float32 by design, so float64 rounding is not to be had.
    torch.testing.assert_close(encoder(tokens[:, order]), encoder(tokens)[:, order], atol=1e-6, rtol=0)


def test_pictures_of_a_batch_do_not_see_each_other():
    ours, _, _ = make_pair("sdpa", **SHAPES["even"])
    pixels = torch.randn(3, 3, 20, 20)
    together = ours(pixels)
    alone = torch.cat([ours(picture[None]) for picture in pixels])
    assert_close(alone, together)


def test_bfloat16_weights_take_float32_pictures():
    ours, theirs, _ = make_pair("eager", **SHAPES["even"])
    pixels = torch.rand(2, 3, 20, 20)
    features = ours.bfloat16()(pixels)
    assert features.dtype == torch.bfloat16
    assert_close(features.float(), theirs.bfloat16()(pixels.bfloat16()).last_hidden_state.float(), 0.1)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, "cannot be shared out among 4"),
        ({"image_size": 10, "patch_size": 16}, "smaller than one patch"),
        ({"num_image_tokens": 3}, "make 196"),
        ({"attention": "flash"}, "expected 'sdpa' or 'eager'"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"hidden_size": 7.5}, "hidden_size is 7.5"),
        ({"num_attention_heads": -1}, "num_attention_heads is -1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SiglipVisionConfig(**values)


@pytest.mark.parametrize("shape", [(3, 20, 20), (1, 3, 20, 21), (1, 1, 20, 20), (1, 20, 20, 3), (0,)])
def test_pictures_of_another_size_are_refused(shape):
    ours, _, _ = make_pair("sdpa", **SHAPES["even"])
    with pytest.raises(ValueError, match=r"expected \[B, 3, 20, 20\].*processor"):
        ours(torch.zeros(shape))


def test_published_settings_at_another_size_keep_their_wrong_token_count_harmless():
    config = SiglipVisionConfig.from_dict({"image_size": 448, "patch_size": 14, "num_image_tokens": 256, "foo": 1})
    assert config.num_image_tokens == 1024
