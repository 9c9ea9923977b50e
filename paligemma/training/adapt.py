"""What a trained model needs before it is trained on: more patches, fresh words, less memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..modeling_gemma import PaliGemmaForConditionalGeneration


def at_resolution(model: PaliGemmaForConditionalGeneration, image_size: int) -> PaliGemmaForConditionalGeneration:
    """The same weights for larger pictures: more patches, their position embeddings interpolated.

    A new model in the old one's dtype, mode and place. Bilinear, as the official code does when it moves from 224 to
    448 pixels (big_vision, models/vit.py, resample_posemb). Raises ValueError when the size is not a whole number of
    patches.
    """
    config = model.config
    patch = config.vision_config.patch_size
    if type(image_size) is not int or image_size < patch or image_size % patch:
        raise ValueError(f"image_size is {image_size}, expected a multiple of {patch}, the side of a patch")
    vision = {**asdict(config.vision_config), "image_size": image_size, "num_image_tokens": None}
    new_config = type(config)(**{**config.__dict__, "vision_config": type(config.vision_config)(**vision)})
    bigger = PaliGemmaForConditionalGeneration(new_config).to(model.device, model.dtype)
    weights = dict(model.state_dict())
    name = "vision_tower.vision_model.embeddings.position_embedding.weight"
    table = weights[name].float()  # [N, D]
    old, new = round(len(table) ** 0.5), image_size // patch
    grid = table.view(1, old, old, -1).permute(0, 3, 1, 2)  # [1, D, old, old]
    grid = F.interpolate(grid, size=(new, new), mode="bilinear", align_corners=False)
    weights[name] = grid.permute(0, 2, 3, 1).reshape(new * new, -1)
    bigger.load_state_dict(weights)
    return bigger.train(model.training)


def redraw_collapsed_embeddings(model, tokenizer, texts: list[str], alike: float = 0.9, seed: int = 0) -> list[int]:
    """Give tokens of `texts` that no training has seen fresh random embeddings; returns their ids, in order.

    The model is changed in place. At every step the softmax pushes down all tokens but the right one, and those
    that are never right or read are pushed in one direction only, until their embeddings are all but the same and
    neither as input nor, tied, as head can the model tell them apart. `<unk>` is such a token, so a token counts
    as collapsed when its cosine similarity with `<unk>` is above `alike`: in the shipped model it is above 0.95
    for tokens that never occurred, and below 0.6 for all others. The new rows are drawn as `initialise` draws
    them, with standard deviation 1 / sqrt(width). In a model with random embeddings nothing is collapsed, and
    nothing changes.
    """
    table = model.language_model.model.embed_tokens.weight  # [V, D]
    used = sorted({i for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for i in ids})
    with torch.no_grad():
        similarity = F.cosine_similarity(table[used], table[tokenizer.unk_token_id], dim=-1)
        collapsed = [i for i, value in zip(used, similarity.tolist(), strict=True) if value > alike]
        fresh = torch.randn(len(collapsed), table.shape[1], generator=torch.Generator().manual_seed(seed))
        table[collapsed] = (fresh * table.shape[1] ** -0.5).to(table)
    return collapsed


@contextmanager
def gradient_checkpointing(model: PaliGemmaForConditionalGeneration) -> Iterator[None]:
    """Inside the block, a layer keeps only its input for the backward pass, and is computed again there.

    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost": the same gradients, for a third more work and a
    fraction of the memory, since all that happens inside a layer is kept for one layer at a time.
    """
    layers = [*model.vision_tower.vision_model.encoder.layers, *model.language_model.model.layers]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again
