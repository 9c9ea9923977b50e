"""Sizes and names of the published checkpoints, from their configurations alone."""

import pytest
import torch
import transformers

from paligemma.checkpoint import canonical_name
from paligemma.modeling_gemma import PaliGemmaConfig
from paligemma.published import PUBLISHED, build_on_meta, count_parameters

# Counted once with transformers' classes on the meta device. Keras Hub publishes its own counts of the same models
# (keras_hub/src/models/pali_gemma/pali_gemma_presets.py): 64 x hidden_size fewer, because its vocabulary stops at
# 257,152, before the padding to a multiple of 64.
COUNTS = {
    "paligemma-3b-pt-224": 2_923_466_480,
    "paligemma-3b-pt-448": 2_924_351_216,
    "paligemma-3b-pt-896": 2_927_890_160,
    "paligemma2-3b-pt-224": 3_032_242_416,
    "paligemma2-3b-pt-448": 3_033_127_152,
    "paligemma2-3b-pt-896": 3_036_666_096,
    "paligemma2-10b-pt-224": 9_662_638_832,
    "paligemma2-10b-pt-448": 9_663_523_568,
    "paligemma2-10b-pt-896": 9_667_062_512,
    "paligemma2-28b-pt-224": 27_650_487_024,
    "paligemma2-28b-pt-448": 27_651_371_760,
    "paligemma2-28b-pt-896": 27_654_910_704,
}
KERAS_HUB = {"paligemma-3b-pt-224": 2_923_335_408, "paligemma-3b-pt-448": 2_924_220_144}
TENSORS = {"paligemma-3b": 603, "paligemma2-3b": 727, "paligemma2-10b": 903, "paligemma2-28b": 947}


def test_every_published_size_is_listed():
    assert set(PUBLISHED) == set(COUNTS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    assert count_parameters(name) == COUNTS[name]
    if name in KERAS_HUB:
        assert count_parameters(name) - 64 * PUBLISHED[name]["text_config"]["hidden_size"] == KERAS_HUB[name]


@pytest.mark.parametrize("name", TENSORS)
def test_names_and_shapes_are_those_of_transformers(name):
    ours = {key: tuple(tensor.shape) for key, tensor in build_on_meta(f"{name}-pt-224").state_dict().items()}
    assert len(ours) == TENSORS[name]
    values = PUBLISHED[f"{name}-pt-224"]
    config = transformers.PaliGemmaConfig(
        text_config=dict(values["text_config"]),
        vision_config=dict(values["vision_config"]),
        projection_dim=values["projection_dim"],
        image_token_index=values["image_token_index"],
    )
    with torch.device("meta"):
        theirs = transformers.PaliGemmaForConditionalGeneration(config)
    expected = {canonical_name(key): tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    assert expected.pop("lm_head.weight") == expected["language_model.model.embed_tokens.weight"]
    assert ours == expected


def test_what_the_published_file_leaves_out_takes_its_true_value():
    config = PaliGemmaConfig.from_dict(PUBLISHED["paligemma-3b-pt-224"])
    text, vision = config.text_config, config.vision_config
    assert (text.head_dim, text.rope_theta, text.rms_norm_eps) == (256, 10000.0, 1e-6)
    assert (vision.image_size, vision.num_image_tokens, vision.layer_norm_eps) == (224, 256, 1e-6)
    assert (config.image_token_index, config.bos_token_id) == (257152, 2)
    assert (config.eos_token_id, config.pad_token_id) == (1, 0)


def test_the_largest_scales_scores_by_its_own_number():
    attention = build_on_meta("paligemma2-28b-pt-224").language_model.model.layers[0].self_attn
    assert attention.head_dim == 128 and attention.scale == 144**-0.5
