"""The measure of the tests: transformers' PaliGemma with random weights, ours with the same, and a toy tokenizer.

Every weight is random, norms and biases too: zeros would hide a forgotten term. The scales keep logits of the order
of 1, so that a tolerance of 1e-5 means something.
"""

import io
import warnings
import zlib

import torch
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from paligemma import KVCache
from paligemma.checkpoint import canonical_name
from paligemma.generation import align_right
from paligemma.modeling_gemma import PaliGemmaConfig, PaliGemmaForConditionalGeneration
from paligemma.processing_paligemma import PaliGemmaProcessor

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

WORDS = "caption detect segment answer en what is the cat dog circle red blue a small large star square".split()


def toy_tokenizer(padding_side: str = "left", model_max_length: int = 10**30, **kwargs):
    """A tokenizer of Gemma's kind made by hand: the same special ids, bytes for what it does not know, no training.

    A few words are one token each, as ▁word; everything else falls into bytes. Newlines are tokens, two in a row are
    one token (as in Gemma's vocabulary). It knows neither <image> nor <loc> and <seg>: processors add them.
    """
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\n", "\n\n", "▁"]
    merges = [("\n", "\n")]
    pieces += [letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in pieces]
    for word in WORDS:
        built = "▁"
        for letter in word:
            if built + letter not in pieces:
                pieces.append(built + letter)
                merges.append((built, letter))
            built += letter
    bpe = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, unk_token="<unk>", byte_fallback=True
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in pieces[:4]])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side=padding_side,
        model_max_length=model_max_length,
        **kwargs,
    )


def toy_processors(image_size: int = 20, num_image_tokens: int = 16, **tokenizer_options):
    """(ours, transformers'), each with a tokenizer of its own: both change the one that they are given."""
    ours = PaliGemmaProcessor(toy_tokenizer(**tokenizer_options), num_image_tokens, image_size)
    image_processor = SiglipImageProcessorPil(size={"height": image_size, "width": image_size})
    image_processor.image_seq_length = num_image_tokens
    theirs = transformers.PaliGemmaProcessor(image_processor, toy_tokenizer(**tokenizer_options))
    return ours, theirs


VOCAB_SIZE = len(toy_processors()[0].tokenizer)
IMAGE_TOKEN_ID = toy_processors()[0].image_token_id


def shape(
    text_model="gemma", D=32, H=4, H_kv=2, d=8, ffn=48, layers=2, image=20, patch=5, D_image=32, H_image=4, **text
):
    """Settings of one tiny model in the symbols of the course; `text` goes to the decoder's configuration."""
    return {
        "text": {
            "model_type": text_model,
            "vocab_size": VOCAB_SIZE,
            "hidden_size": D,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": H,
            "num_key_value_heads": H_kv,
            "head_dim": d,
            **text,
        },
        "vision": {
            "hidden_size": D_image,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": H_image,
            "image_size": image,
            "patch_size": patch,
            "vision_use_head": False,
        },
    }


def rope(theta: float) -> dict:
    return {"rope_type": "default", "rope_theta": theta}


GEMMA_SHAPES = {
    "every head its own keys": shape(H=4, H_kv=4),
    "two heads share keys": shape(H=4, H_kv=2),
    "one key head": shape(H=4, H_kv=1),
    "hidden size is not heads x head_dim": shape(D=24, H=3, H_kv=1, d=16, D_image=40, H_image=5),
    "odd pixels and patches": shape(D=36, H=6, H_kv=3, d=10, image=21, patch=5, D_image=30, H_image=3),
    "one patch is the picture": shape(D=20, H=1, H_kv=1, d=4, image=9, patch=9, layers=1, D_image=18, H_image=2),
    "deep, another base of RoPE": shape(D=16, H=2, H_kv=1, d=12, layers=4, image=13, patch=4, rope_parameters=rope(50)),
}

GEMMA2_SHAPES = {
    "grouped": shape("gemma2", H=4, H_kv=2),
    "every head its own keys": shape("gemma2", H=4, H_kv=4, query_pre_attn_scalar=11),
    "one key head, scalar is not head_dim": shape("gemma2", D=24, H=3, H_kv=1, d=16, query_pre_attn_scalar=5),
    "strong soft caps": shape(
        "gemma2", attn_logit_softcapping=0.7, final_logit_softcapping=1.5, query_pre_attn_scalar=2
    ),
    "no soft caps": shape("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None),
    "window shorter than the text": shape("gemma2", layers=4, sliding_window=6),
    "window of two, odd pixels": shape("gemma2", layers=3, sliding_window=2, image=21, patch=5, H_kv=1),
}
ALL_SHAPES = GEMMA_SHAPES | {f"Gemma 2: {name}": settings for name, settings in GEMMA2_SHAPES.items()}


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter random, at a scale that carries unit variance through the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "position_embedding" in name:
                parameter.copy_(0.5 * noise)
            elif parameter.ndim >= 2:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif name.startswith("model.vision_tower") and name.endswith("weight"):  # LayerNorm: the factor itself
                parameter.copy_(1 + 0.3 * noise)
            else:  # RMSNorm (1 + weight) and biases
                parameter.copy_(0.3 * noise)


def make_talkative(model: torch.nn.Module) -> None:
    """Random weights that write varied tokens. With a head that is the embedding table, equal scales would repeat the
    last token for ever: here embeddings are small beside what the MLPs add, and the last norm makes up for it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name:
                parameter *= 0.25
            elif "down_proj" in name:
                parameter *= 3
            elif name.endswith("post_feedforward_layernorm.weight"):
                parameter += 2
            elif name.endswith("language_model.norm.weight"):
                parameter += 3


def make_theirs(settings: dict, seed: int = 0, **changes):
    """transformers' model of a `shape`, with random weights, eager attention, in evaluation mode."""
    config = transformers.PaliGemmaConfig(
        text_config=dict(settings["text"]),
        vision_config={"model_type": "siglip_vision_model", **settings["vision"]},
        image_token_index=IMAGE_TOKEN_ID,
        projection_dim=settings["text"]["hidden_size"],
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
        **changes,
    )
    theirs = transformers.PaliGemmaForConditionalGeneration._from_config(config, attn_implementation="eager")
    randomise(theirs, seed)
    return theirs.eval()


def make_ours(theirs, attention: str = "sdpa") -> PaliGemmaForConditionalGeneration:
    """Our model with the configuration and a copy of the weights of transformers'."""
    config = PaliGemmaConfig.from_dict(theirs.config.to_dict(), attention=attention)
    ours = PaliGemmaForConditionalGeneration(config)
    state = {canonical_name(name): tensor.detach().clone() for name, tensor in theirs.state_dict().items()}
    del state["lm_head.weight"]  # the embedding table again
    ours.load_state_dict(state)  # strict
    return ours.eval()


def make_pair(settings: dict, attention: str = "sdpa", seed: int = 0):
    """(ours, transformers') with the same random weights."""
    theirs = make_theirs(settings, seed)
    return make_ours(theirs, attention), theirs


def processors_for(settings: dict, **tokenizer_options):
    """(ours, transformers') for the pictures of a `shape`."""
    image, patch = settings["vision"]["image_size"], settings["vision"]["patch_size"]
    return toy_processors(image, (image // patch) ** 2, **tokenizer_options)


def pictures(count: int, size: int = 20, seed: int = 0) -> list[Image.Image]:
    """Random RGB pictures."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(picture.numpy()) for picture in pixels]


def picture_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be this large."""
    file = io.BytesIO()
    Image.new("1", (1, 1)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """The largest absolute difference is at most `tolerance`, and what is compared is not all zeros."""
    assert actual.shape == expected.shape, f"{list(actual.shape)} is not {list(expected.shape)}"
    assert expected.abs().max() > 0
    difference = (actual - expected).abs().max().item()
    assert difference <= tolerance, f"differs by {difference:.1e}, allowed are {tolerance:.0e}"


# ------------------------------------------------------------------------------- comparisons used by several tests

PROMPTS = ["caption en", "what is the small red dog in a large square, and a cat?", ""]
SUFFIXES = ["a cat", "<loc0012><loc0100><loc0200><loc1023> red star ; blue", "large circle"]


def call_theirs(processor, prompts, images, suffixes=None, **options) -> dict[str, torch.Tensor]:
    """transformers' processor with one <image> a picture at the front, as it wants them."""
    text = ["<image>" * len(row) + prompt for prompt, row in zip(prompts, images, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's, about how it copies tensors
        return processor(
            text=text, images=images, suffix=suffixes, return_tensors="pt", **{"padding": "longest", **options}
        )


def make_inputs(settings, padding_side="left", prompts=PROMPTS, suffixes=None) -> dict[str, torch.Tensor]:
    """Model inputs by our processor, after checking that transformers' gives the very same."""
    ours, theirs = processors_for(settings, padding_side=padding_side)
    images = pictures(len(prompts), settings["vision"]["image_size"])
    inputs = ours(text=prompts, images=images, suffix=suffixes)
    expected = call_theirs(theirs, prompts, [[image] for image in images], suffixes)
    for name in inputs:
        assert torch.equal(inputs[name], expected[name]), name
    assert set(expected) - set(inputs) <= {"labels"}  # transformers gives labels of -100 without a suffix, too
    return inputs


def compare_with_transformers(settings, attention, padding_side, prompts, suffixes):
    """Logits of every real token; with suffixes also the loss and the gradient of every parameter."""
    ours, theirs = make_pair(settings, attention)
    inputs = make_inputs(settings, padding_side, prompts, suffixes)
    output, expected = ours(**inputs), theirs(**inputs)
    real = inputs["attention_mask"].bool()
    assert_close(output.logits[real], expected.logits[real])
    if suffixes is None:
        assert output.loss is None
        return
    assert abs(output.loss - expected.loss) <= 1e-5
    output.loss.backward()
    expected.loss.backward()
    gradients = {canonical_name(name): parameter.grad for name, parameter in theirs.named_parameters()}
    assert set(gradients) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        expected = gradients[name]
        largest = expected.abs().max()
        # Only what the softmax cancels has no gradient: scores of a single patch, and biases of keys.
        assert largest > 1e-6 or ("vision" in name and ("q_proj" in name or "k_proj" in name)), name
        difference = (parameter.grad - expected).abs().max()
        assert difference <= 1e-5 and (largest < 1e-6 or difference <= 2e-4 * largest), f"{name}: {difference:.1e}"


def compare_cached_with_whole(settings, attention, padding_side, chunk=1):
    """Prompt first, then the suffix in chunks through the cache: the logits of transformers' single pass."""
    from paligemma import KVCache

    ours, theirs = make_pair(settings, attention)
    inputs = make_inputs(settings, padding_side)
    B, L = inputs["input_ids"].shape
    generator = torch.Generator().manual_seed(1)
    suffix = torch.randint(4, 300, (B, 7), generator=generator)
    ones, whole = torch.ones_like(suffix), {**inputs}
    whole["input_ids"] = torch.cat([inputs["input_ids"], suffix], dim=1)
    whole["attention_mask"] = torch.cat([inputs["attention_mask"], ones], dim=1)
    whole["token_type_ids"] = torch.cat([inputs["token_type_ids"], ones], dim=1)
    # Positions count the real tokens. transformers counts columns unless told; its generate() passes these as well.
    positions = whole["attention_mask"].cumsum(dim=1).clamp(min=1)
    with torch.no_grad():
        expected = theirs(**whole, position_ids=positions).logits
        kv_cache = KVCache(ours.config.text_config, B, L + 7)
        logits = [ours(**inputs, kv_cache=kv_cache).logits]
        for start in range(0, 7, chunk):
            T = min(L + start + chunk, L + 7)
            output = ours(
                suffix[:, start : start + chunk],
                attention_mask=whole["attention_mask"][:, :T],
                token_type_ids=whole["token_type_ids"][:, :T],
                kv_cache=kv_cache,
            )
            logits.append(output.logits)
    assert kv_cache.num_items() == L + 7
    real = whole["attention_mask"].bool()
    assert_close(torch.cat(logits, dim=1)[real], expected[real])


def compare_greedy(settings, attention, padding_side, prompts=PROMPTS, max_new_tokens=12, eos_token_id=1):
    """Our greedy tokens and those of transformers' generate(), with its own cache and without any."""
    from paligemma.generation import generate_tokens

    theirs = make_theirs(settings, seed=7)  # a seed with which no shape falls silent
    make_talkative(theirs)
    ours = make_ours(theirs, attention)
    ours.config.eos_token_id = eos_token_id
    inputs = make_inputs(settings, padding_side, prompts)
    tokens = torch.stack(list(generate_tokens(ours, inputs, max_new_tokens)), dim=1)  # [B, new]
    left = make_inputs(settings, "left", prompts)  # transformers can generate from left padding only
    for use_cache in (True, False):
        expected = theirs.generate(
            **left,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=use_cache,
            eos_token_id=eos_token_id,
            pad_token_id=0,
        )[:, left["input_ids"].shape[1] :]
        assert tokens.tolist() == expected.tolist()
    assert len(set(tokens.flatten().tolist())) > 2, "the same token over and over compares nothing"
    return tokens


def decode_all(model, inputs, suffix, dtype=torch.float32):
    """Prefill, then the suffix [B, n] one token at a time: logits [B, n, V] and the cache."""
    inputs = align_right(inputs)
    B, L = inputs["input_ids"].shape
    kv_cache = KVCache(model.config.text_config, B, L + suffix.shape[1], dtype=dtype)
    mask, types = inputs["attention_mask"], inputs["token_type_ids"]
    with torch.no_grad():
        model(**inputs, kv_cache=kv_cache)
        logits = []
        for i in range(suffix.shape[1]):
            mask, types = (torch.cat([part, part.new_ones(B, 1)], dim=1) for part in (mask, types))
            logits.append(model(suffix[:, i : i + 1], None, mask, types, kv_cache=kv_cache).logits)
    return torch.cat(logits, dim=1).float(), kv_cache


def logits_of_transformers(theirs, inputs, suffix) -> torch.Tensor:
    """What `decode_all` should give, [B, n, V]: transformers' one pass over prompt and suffix, without a cache."""
    whole, ones = align_right(inputs), torch.ones_like(suffix)
    for name, more in (("input_ids", suffix), ("attention_mask", ones), ("token_type_ids", ones)):
        whole[name] = torch.cat([whole[name], more], dim=1)
    positions = whole["attention_mask"].cumsum(dim=1).clamp(min=1)
    with torch.no_grad():
        return theirs(**whole, position_ids=positions).logits[:, -suffix.shape[1] :]
