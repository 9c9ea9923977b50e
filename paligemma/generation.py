"""Generation: one pass over the prompt (prefill), then one token at a time (decode).

Greedy by default; temperature, top-k and top-p on request. Prompts of unequal length share a batch.
"""

import reprlib
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import nn

from .config_checks import check_count, is_number, is_whole
from .kv_cache import KVCache
from .modeling_gemma import PaliGemmaForConditionalGeneration
from .processing_paligemma import PaliGemmaProcessor


def generate(
    model: PaliGemmaForConditionalGeneration,
    processor: PaliGemmaProcessor,
    images: Image.Image | Sequence[Image.Image],
    text: str | Sequence[str],
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    return_probabilities: bool = False,
) -> list[str] | tuple[list[str], list[list[float]]]:
    """The model's answer to each prompt, without the prompt: a list of B strings.

    One picture may stand for several prompts: `images=[image], text=["caption en", "detect cat"]`. Pictures that are
    equal are encoded once. temperature 0 takes the likeliest token each time (greedy); above, tokens are drawn (see
    `sample`), the same ones for the same `seed`. An answer ends at EOS or after max_new_tokens.

    With `return_probabilities`, the probabilities as well: for each answer those that the model gave (before
    temperature, top-k and top-p) to its tokens, EOS included. Their product is the probability of the whole answer.

    Raises ValueError for settings out of range, and what the processor raises for pictures and prompts.
    """
    pictures = [images] if isinstance(images, Image.Image) else images
    if isinstance(text, (list, tuple)) and isinstance(pictures, (list, tuple)) and len(pictures) == 1:
        images = list(pictures) * len(text)
    inputs = processor(text=text, images=images)
    rows: list[list[int]] = [[] for _ in inputs["input_ids"]]
    probabilities: list[list[float]] = [[] for _ in rows]
    for tokens, logits in decode(model, inputs, max_new_tokens, temperature, top_k, top_p, seed):
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.append(token)
        if return_probabilities:
            given = logits.float().softmax(dim=-1).gather(1, tokens[:, None])[:, 0]  # [B]
            for row, probability in zip(probabilities, given.tolist(), strict=True):
                row.append(probability)
    answers = [until_eos(row, model.config.eos_token_id) for row in rows]
    texts = [processor.decode(ids) for ids in answers]
    if not return_probabilities:
        return texts
    return texts, [given[: len(ids) + 1] for given, ids in zip(probabilities, answers, strict=True)]


def stream(
    model: PaliGemmaForConditionalGeneration,
    processor: PaliGemmaProcessor,
    image: Image.Image,
    text: str,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Iterator[str]:
    """The answer to one prompt, piece by piece as it is written: the pieces joined are `generate`'s answer."""
    inputs = processor(text=[text], images=[image])
    ids, written = [], ""
    for tokens in generate_tokens(model, inputs, max_new_tokens, temperature, top_k, top_p, seed):
        ids.append(int(tokens))
        # Decoded from the start each time: a letter outside the vocabulary is spelled in bytes, tokens such as <0xC3>,
        # and what bytes say is certain only when the last of them is there.
        so_far = processor.decode(until_eos(ids, model.config.eos_token_id))
        in_bytes = str(processor.tokenizer.convert_ids_to_tokens(ids[-1])).startswith("<0x")
        if not in_bytes and len(so_far) > len(written):
            yield so_far[len(written) :]
            written = so_far
    if len(so_far) > len(written):  # it stopped in the middle of a letter
        yield so_far[len(written) :]


def generate_tokens(
    model: PaliGemmaForConditionalGeneration,
    inputs: dict[str, torch.Tensor],
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Iterator[torch.Tensor]:
    """Yields the next token of every row, [B] int64, until all rows have said EOS.

    `inputs` are the processor's. A row that has ended yields padding. The pictures are encoded once.
    """
    for tokens, _ in decode(model, inputs, max_new_tokens, temperature, top_k, top_p, seed):
        yield tokens


@torch.inference_mode()
def decode(
    model: PaliGemmaForConditionalGeneration,
    inputs: dict[str, torch.Tensor],
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int | None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The loop itself: yields (tokens [B] int64, the logits [B, V] that they were chosen from)."""
    check_sampling(max_new_tokens, temperature, top_k, top_p, seed)
    device = model.device
    generator = None if seed is None else torch.Generator(device).manual_seed(int(seed))
    inputs = encode_each_picture_once(model, {name: inputs[name] for name in inputs if name != "labels"})
    inputs = align_right({name: tensor.to(device) for name, tensor in inputs.items()})
    batch_size, prompt_length = inputs["input_ids"].shape
    longest = model.config.text_config.max_position_embeddings
    if prompt_length + max_new_tokens > longest:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens}, expected at most {longest - prompt_length}: with the {prompt_length} "
            f"tokens of picture and prompt, the model was made for {longest} (max_position_embeddings)"
        )
    # Mask and types of prompt and answer in full length; each step looks at the front part that exists by then.
    ones = inputs["attention_mask"].new_ones(batch_size, max_new_tokens)
    attention_mask = torch.cat([inputs["attention_mask"], ones], dim=1)  # an answer has no padding
    token_type_ids = torch.cat([inputs["token_type_ids"], ones], dim=1)  # and is of type 1
    kv_cache = KVCache(
        model.config.text_config, batch_size, prompt_length + max_new_tokens, dtype=model.dtype, device=device
    )
    finished = torch.zeros(batch_size, dtype=torch.bool, device=device)

    # Prefill: picture and prompt in one pass. Only the last position's logits are of use.
    logits = model(**inputs, kv_cache=kv_cache, logits_to_keep=1).logits[:, -1]  # [B, V]
    for step in range(max_new_tokens):
        tokens = sample(logits, temperature, top_k, top_p, generator)  # [B]
        tokens = tokens.masked_fill(finished, model.config.pad_token_id)
        yield tokens, logits
        finished |= tokens == model.config.eos_token_id
        if step + 1 == max_new_tokens or finished.all():
            return
        # Decode: the new token alone; what came before is in the cache.
        T = prompt_length + step + 1
        mask, types = attention_mask[:, :T], token_type_ids[:, :T]
        logits = model(tokens[:, None], None, mask, types, kv_cache=kv_cache, logits_to_keep=1).logits[:, -1]  # [B, V]


def encode_each_picture_once(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Where pictures repeat, `image_features` take the place of `pixel_values`: several prompts about one picture.

    The encoder sees the picture alone, so its features serve every prompt. The decoder's keys and values do not: in
    the prefix, image tokens see the prompt, so each row has its own.
    """
    distinct, which = [], []
    for picture in inputs["pixel_values"]:
        seen = (i for i, other in enumerate(distinct) if torch.equal(picture, other))
        which.append(next(seen, len(distinct)))
        if which[-1] == len(distinct):
            distinct.append(picture)
    if len(distinct) == len(which) or not hasattr(model, "get_image_features"):
        return inputs
    features = model.get_image_features(torch.stack(distinct).to(model.device))[which]  # [B, N, D]
    return {name: tensor for name, tensor in inputs.items() if name != "pixel_values"} | {"image_features": features}


def sample(
    logits: torch.Tensor,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Choose the next token of each row. logits [B, V] -> [B] int64

    Temperature 0: the likeliest. Otherwise logits / temperature; then only the top_k likeliest (0: all); then only
    the fewest likeliest tokens whose probabilities reach top_p (Holtzman et al. 2020, "nucleus"); then a draw.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits.float() / temperature).softmax(dim=-1)  # [B, V]
    if top_k == 0 and top_p == 1:
        return torch.multinomial(probabilities, num_samples=1, generator=generator).squeeze(1)
    V = probabilities.shape[-1]
    if top_k:
        k = min(top_k, V)
    else:  # tokens less likely than (1 - top_p) / V are out: all of them together are less than 1 - top_p
        k = max(1, int((probabilities >= (1 - top_p) / V).sum(dim=-1).max()))
    probabilities, order = probabilities.topk(k, dim=-1)  # [B, k], likeliest first; sorting all V would be slow
    if top_k:
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    if top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities  # cumulative probability of all likelier tokens
        before[:, 0] = -1  # the likeliest stays, however small top_p
        probabilities[before >= top_p] = 0  # and so does the token that crosses top_p
    choice = torch.multinomial(probabilities, num_samples=1, generator=generator)  # [B, 1]; it normalises by itself
    return order.gather(1, choice).squeeze(1)


def check_sampling(max_new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int | None = None) -> None:
    """Raise ValueError for settings that mean nothing."""
    check_count("max_new_tokens", max_new_tokens)
    if not is_number(temperature) or not (temperature == 0 or 1e-4 <= temperature <= 1e4):
        raise ValueError(
            f"temperature is {reprlib.repr(temperature)}, expected 0 (greedy) or a number from 0.0001 to 10000"
        )
    if not is_whole(top_k) or top_k < 0:
        raise ValueError(f"top_k is {reprlib.repr(top_k)}, expected 0 (no limit) or a whole number above")
    if not is_number(top_p) or not 0 < top_p <= 1:
        raise ValueError(f"top_p is {reprlib.repr(top_p)}, expected a number above 0 and at most 1")
    if seed is not None and (not is_whole(seed) or not 0 <= seed < 2**63):
        raise ValueError(f"seed is {reprlib.repr(seed)}, expected None or a whole number from 0 to 2^63 - 1")


def align_right(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move each row's padding to its left, so that the next token of every row goes into the same column."""
    order = inputs["attention_mask"].argsort(dim=1, stable=True)  # padding first, the order otherwise kept
    return {name: tensor.gather(1, order) if tensor.ndim == 2 else tensor for name, tensor in inputs.items()}


def until_eos(ids: list[int], eos_token_id: int) -> list[int]:
    """The ids before the first EOS."""
    return ids[: ids.index(eos_token_id)] if eos_token_id in ids else ids
