"""Writing: the prompt once (prefill), then one token after the other (decode).

Greedy by default; temperature, top-k and top-p on request. Prompts of unequal length share a batch.
"""

from collections.abc import Iterator, Sequence

import torch
from PIL import Image

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
) -> list[str]:
    """The model's answer to each prompt, without the prompt: a list of B strings.

    temperature 0 takes the likeliest token each time (greedy); above, tokens are drawn (see `sample`), the same ones
    for the same `seed`. An answer ends at EOS or after max_new_tokens. Raises ValueError for settings out of range,
    and what the processor raises for pictures and prompts.
    """
    inputs = processor(text=text, images=images)
    rows = [[] for _ in inputs["input_ids"]]
    for tokens in generate_tokens(model, inputs, max_new_tokens, temperature, top_k, top_p, seed):
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.append(token)
    return [processor.decode(until_eos(row, model.config.eos_token_id)) for row in rows]


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
    """The same for one prompt, piece by piece as it is written: the pieces joined are `generate`'s answer."""
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


@torch.inference_mode()
def generate_tokens(
    model: PaliGemmaForConditionalGeneration,
    inputs: dict[str, torch.Tensor],
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Iterator[torch.Tensor]:
    """The loop itself: yields the next token of every row, [B] int64, until all rows have said EOS.

    `inputs` are the processor's. A row that has ended yields padding. The pictures are encoded once.
    """
    check_sampling(max_new_tokens, temperature, top_k, top_p)
    device = model.device
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    inputs = align_right({name: inputs[name].to(device) for name in inputs if name != "labels"})
    batch_size, prompt_length = inputs["input_ids"].shape
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
        yield tokens
        finished |= tokens == model.config.eos_token_id
        if step + 1 == max_new_tokens or finished.all():
            return
        # Decode: the new token alone; what came before is in the cache.
        T = prompt_length + step + 1
        mask, types = attention_mask[:, :T], token_type_ids[:, :T]
        logits = model(tokens[:, None], None, mask, types, kv_cache=kv_cache, logits_to_keep=1).logits[:, -1]  # [B, V]


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
    logits, order = (logits.float() / temperature).sort(dim=-1, descending=True)  # [B, V]
    if top_k:
        logits[:, top_k:] = -torch.inf
    probabilities = logits.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # what the likelier tokens have already
    probabilities[before >= top_p] = 0  # the token that crosses top_p stays, so one always does
    choice = torch.multinomial(probabilities, num_samples=1, generator=generator)  # [B, 1]; it normalises by itself
    return order.gather(1, choice).squeeze(1)


def check_sampling(max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    """Raise ValueError for settings that mean nothing."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, expected 1 or more")
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}, expected 0 (greedy) or more")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}, expected 0 (no limit) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected more than 0 and at most 1")


def align_right(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move each row's padding to its left, so that the next token of every row goes into the same column."""
    order = inputs["attention_mask"].argsort(dim=1, stable=True)  # padding first, the order otherwise kept
    return {name: tensor.gather(1, order) if tensor.ndim == 2 else tensor for name, tensor in inputs.items()}


def until_eos(ids: list[int], eos_token_id: int) -> list[int]:
    """The ids before the first EOS."""
    return ids[: ids.index(eos_token_id)] if eos_token_id in ids else ids
