"""The parts of the model in the order in which the video builds them: inputs, the right code, the usual mistakes.

Sizes are small, all different, and none of them the model's, so that a size that is written into the code shows. The
names of mistakes are those of the exercises' checks, whose imitations are used as they are (imitations.py has more).
"""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from ... import modeling_gemma as gemma
from ... import modeling_siglip as siglip
from ... import processing_paligemma as processing
from ..tasks import Case, Mistake, Task, find_task, numbers
from . import calls, early_imitations, imitations, standins
from .calls import Sizes
from .modules import Maker, new_cache


@dataclass
class Part:
    """`run(thing, *inputs)` makes and calls the learner's, the right one or an imitation, whatever its signature."""

    name: str
    chapter: str
    right: object  # the reference
    cases: Sequence[Case]
    run: Callable
    tasks: tuple[str, ...] = ()  # exercises whose imitations are tried
    mistakes: Sequence[Mistake] = ()
    uses: tuple[str, ...] = ()  # parts inside it
    tolerance: float = 2e-5
    variants: tuple = ()  # right code in another style: its steps are known, too, when the place is looked for
    places: dict[str, str] = field(default_factory=dict)  # {name of a mistake: pattern of the line to look at}
    fit: Callable | None = None  # thing -> [(saw, means, attribute)]: parameters that do not match
    task: Task | None = None

    def __post_init__(self):
        mistakes = [*self.mistakes, *(one for task in self.tasks for one in find_task(task).mistakes)]
        self.task = Task(
            id=self.tasks[0] if self.tasks else self.name,
            title=self.name,
            points=0,
            minutes=0,
            level="",
            reference=self.right,
            cases=lambda seed: self.cases,
            mistakes=mistakes,
            tolerance=self.tolerance,
            gradients=False,
            use=self.run,
            symptoms=[rule for task in self.tasks for rule in find_task(task).symptoms],
        )


# --- inputs ----------------------------------------------------------------------------------------------------------

OTHER_VISION = calls.vision(hidden_size=10, intermediate_size=14, num_attention_heads=2, image_size=8, patch_size=2,
                            num_image_tokens=16, layer_norm_eps=0.5, num_hidden_layers=2)  # fmt: skip

OTHER_TEXT = calls.text(hidden_size=18, intermediate_size=22, num_attention_heads=6, num_key_value_heads=3, head_dim=4,
                        rms_norm_eps=0.3, rope_theta=100.0, num_hidden_layers=2, vocab_size=40)  # fmt: skip


def vision_cases(tensor: Callable) -> list[Case]:
    cases = []
    for seed, (sizes, batch) in enumerate(((calls.vision(), 2), (OTHER_VISION, 4))):
        named = {"B": batch, "N": sizes["num_image_tokens"], "D": sizes["hidden_size"]}
        named.update({"C": 3} if tensor is pixels else {})
        cases.append(Case((*tensor(seed, batch, sizes), sizes), sizes=named))
    return cases


def pixels(seed, batch, sizes):
    return (numbers(seed, batch, sizes["num_channels"], sizes["image_size"], sizes["image_size"]),)


def patches(seed, batch, sizes):
    return (numbers(seed, batch, sizes["num_image_tokens"], sizes["hidden_size"]),)


def text_cases(tensor: Callable, **more) -> list[Case]:
    cases = []
    for seed, (sizes, batch, length) in enumerate(((calls.text(), 3, 5), (OTHER_TEXT, 2, 7))):
        sizes = Sizes({**sizes, **more})
        named = {"B": batch, "L": length, "D": sizes["hidden_size"], "H": sizes["num_attention_heads"],
                 "H_kv": sizes["num_key_value_heads"], "d": sizes["head_dim"]}  # fmt: skip
        note = f"in two steps, with a cache: {length - 1} tokens and 1 more" if seed == 1 and "cached" in more else ""
        sizes["steps"] = (length - 1, 1) if note else (length,)
        cases.append(Case((*tensor(seed, batch, length, sizes), sizes), sizes=named, note=note))
    return cases


def tokens(seed, batch, length, sizes):
    return (numbers(seed, batch, length, sizes["hidden_size"]),)


def attended(seed, batch, length, sizes):
    """States, a mask of ordinary numbers (so that a forgotten or multiplied one shows), positions that start late."""
    mask = numbers(seed + 40, batch, 1, length, length)
    positions = torch.arange(3, 3 + length).expand(batch, length) + torch.arange(batch)[:, None]
    return numbers(seed, batch, length, sizes["hidden_size"]), mask, positions


# --- all parts -------------------------------------------------------------------------------------------------------


def make_parts(maker: Maker) -> list[Part]:
    """All parts, in the order of the video."""
    return [*config_parts(maker)[:1], *vision_parts(maker), *processing_parts(), *config_parts(maker)[1:],
            *gemma_parts(maker), *whole_parts(maker)]  # fmt: skip


def simple(maker: Maker, name: str, right, sizes: Sizes, **more) -> Part:
    """A module with one tensor in and one (or the first of several) out."""

    def run(kind, x, sizes):
        return calls.first_tensor(calls.call(maker.loaded(name, kind, right, sizes), {"hidden_states": x}))

    return Part(name=name, right=right, run=run, fit=maker.fits(name, right, sizes), **more)


# --- configurations --------------------------------------------------------------------------------------------------

SPARE = {"attention_dropout", "num_image_tokens", "attention_bias", "max_position_embeddings", "pad_token_id",
         "rope_theta", "head_dim"}  # fmt: skip


class NotKept(Exception):
    """A value that a configuration was given and does not have afterwards under the published name."""

    def __init__(self, name: str, given, value, parameters):
        self.attribute = name
        if value is None and name not in parameters:
            self.means = f"config.json files call it {name}: under another name it is not read from them"
            super().__init__(f"the configuration has no {name}")
        else:
            self.means = "two lines of __init__ are mixed up, or one is missing"
            super().__init__(f"{name}={given} was given, and afterwards config.{name} is {value}")


def config_parts(maker: Maker) -> list[Part]:
    def kept(names, model_type):
        def run(kind, sizes):
            if kind is Sizes:
                return {}
            made = calls.construct(kind, {**sizes, "model_type": model_type})
            parameters = inspect.signature(kind).parameters
            for name in names:
                value = getattr(made, name, None)
                if value != sizes[name] and (name in parameters or name not in SPARE):
                    raise NotKept(name, sizes[name], value, parameters)
            return {}

        return run

    def part(name, chapter, sizes, model_type):
        names = [key for key in sizes if key not in ("vision_config", "text_config", "bos_token_id", "eos_token_id")]
        if name == "PaliGemmaConfig":
            names = ["image_token_index"]
        return Part(name, chapter, Sizes, [Case((sizes,))], kept(names, model_type))

    distinct = Sizes({**calls.VISION, "num_attention_heads": 4, "num_channels": 1, "attention_dropout": 0.25})
    other = Sizes({**calls.TEXT, "pad_token_id": 7})
    return [
        part("SiglipVisionConfig", "02", distinct, "siglip_vision_model"),
        part("GemmaConfig", "09", other, "gemma"),
        part("PaliGemmaConfig", "10", calls.whole(pad_token_id=5), "paligemma"),
    ]


# --- the image encoder -----------------------------------------------------------------------------------------------


def vision_parts(maker: Maker) -> list[Part]:
    sizes = calls.vision()
    return [
        simple(maker, "SiglipVisionEmbeddings", siglip.SiglipVisionEmbeddings, sizes, chapter="02",
               cases=vision_cases(pixels), tasks=("02.4",)),
        simple(maker, "SiglipMLP", siglip.SiglipMLP, sizes, chapter="04", cases=vision_cases(patches),
               mistakes=[*imitations.IMAGE_MLP, *early_imitations.IMAGE_MLPS]),
        simple(maker, "SiglipAttention", siglip.SiglipAttention, sizes, chapter="03", cases=vision_cases(patches),
               tasks=("03.4",), places={"scale by the wrong size": r"self\.\w*scale\w* *="}),
        simple(maker, "SiglipEncoderLayer", siglip.SiglipEncoderLayer, sizes, chapter="04",
               cases=vision_cases(patches), tasks=("04.3",), mistakes=[imitations.EPS],
               uses=("SiglipAttention", "SiglipMLP")),
        simple(maker, "SiglipEncoder", siglip.SiglipEncoder, sizes, chapter="04", cases=vision_cases(patches),
               mistakes=imitations.LAYERS, uses=("SiglipEncoderLayer",)),
        simple(maker, "SiglipVisionTransformer", siglip.SiglipVisionTransformer, sizes, chapter="04",
               cases=vision_cases(pixels), uses=("SiglipVisionEmbeddings", "SiglipEncoder"),
               mistakes=[*imitations.ENCODERS, *early_imitations.ENCODERS]),
        simple(maker, "SiglipVisionModel", siglip.SiglipVisionModel, sizes, chapter="04", cases=vision_cases(pixels),
               uses=("SiglipVisionTransformer",)),
    ]  # fmt: skip


# --- the processor ---------------------------------------------------------------------------------------------------


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Noise with a slope: no two pixels, rows or channels alike."""
    values = np.random.RandomState(seed).randint(0, 120, (height, width, 3))
    values[..., 0] += np.linspace(0, 100, width, dtype=int)[None, :]
    values[..., 1] += np.linspace(0, 60, height, dtype=int)[:, None]
    return Image.fromarray(values.astype(np.uint8))


def processing_parts() -> list[Part]:
    def prompt(function, prompt, bos, count, image):
        given = {"prefix_prompt": prompt, "bos_token": bos, "image_seq_len": count, "image_token": image}
        return calls.call(function, given)

    def resized(function, image, size, resample):
        return calls.call(function, {"image": image, "size": size, "resample": resample})

    def rescaled(function, image, scale):
        return calls.call(function, {"image": image, "scale": scale})

    def normalized(function, image, mean, std):
        return calls.call(function, {"image": image, "mean": mean, "std": std})

    def processed(function, images, size):
        given = {"images": images, "size": size, "resample": Image.Resampling.BICUBIC, "rescale_factor": 1 / 255.0}
        result = calls.call(function, {**given, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
        if isinstance(result, np.ndarray | torch.Tensor):  # stacked here instead of later: the same numbers
            result = list(np.asarray(result))
        return [np.asarray(one, dtype=np.float32) if hasattr(one, "dtype") else one for one in result]

    wide, tall = picture(0, 13, 9), picture(1, 7, 10)
    array = np.asarray(wide)
    floats = np.asarray(tall, dtype=np.float32) / 255
    return [
        Part("add_image_tokens_to_prompt", "05", processing.add_image_tokens_to_prompt,
             [Case(("caption en", "<bos>", 5, "<image>")), Case(("", "<s>", 3, "<patch>"))], prompt,
             mistakes=early_imitations.PROMPTS),
        Part("resize", "01", processing.resize,
             [Case((wide, (6, 8), Image.Resampling.BICUBIC)), Case((tall, (11, 4), Image.Resampling.NEAREST))], resized,
             mistakes=imitations.SIZES),
        Part("rescale", "01", processing.rescale, [Case((array, 1 / 255.0)), Case((array, 0.25))], rescaled,
             mistakes=early_imitations.RESCALES),
        Part("normalize", "01", processing.normalize,
             [Case((floats, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])), Case((floats, [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]))],
             normalized, mistakes=early_imitations.NORMALIZES),
        Part("process_images", "01", processing.process_images,
             [Case(([wide, tall], (6, 8))), Case(([tall], (5, 5)))], processed, ("01.4",),
             uses=("resize", "rescale", "normalize"), places={
                 "other interpolation": "resize", "not normalised": "normali[sz]e|rescale",
                 "not finite": "normali[sz]e",
             }),
    ]  # fmt: skip


# --- the decoder -----------------------------------------------------------------------------------------------------


def use_cache(maker: Maker):
    def run(kind, sizes):
        given = {"config": calls.configuration(sizes, maker.kinds), "batch_size": 2, "max_length": 64}
        cache = kind(**calls.arguments(kind, given)) if kind.__init__ is not object.__init__ else kind()
        told, held = {"num_items of an empty cache": count(cache)}, 0
        for step, length in enumerate(sizes["steps"]):
            held += length
            for layer in range(sizes["layers"]):
                key = numbers(10 * step + layer, 2, sizes["num_key_value_heads"], length, sizes["head_dim"])
                value = numbers(100 + 10 * step + layer, *key.shape)
                keys, values = calls.call(cache.update, {"k": key, "v": value, "layer_idx": layer})
                told[f"keys of layer {layer}, {held} tokens"] = keys
                told[f"values of layer {layer}, {held} tokens"] = values
            if hasattr(cache, "advance"):
                cache.advance(length)
            told[f"num_items, {held} tokens"] = count(cache)
        return told

    def count(cache):
        items = cache.num_items
        return items() if callable(items) else items

    return run


def gemma_parts(maker: Maker) -> list[Part]:
    sizes = calls.text()

    def rotary(kind, x, positions, sizes):
        made = maker.make("GemmaRotaryEmbedding", kind, sizes)
        return tuple(calls.call(made, {"hidden_states": x, "position_ids": positions}))

    def angles(seed, batch, length, sizes):
        heads = sizes["num_key_value_heads"]
        x = numbers(seed, batch, heads, length, sizes["head_dim"])
        return x, torch.arange(3, 3 + length).expand(batch, length) + 5 * torch.arange(batch)[:, None]

    def apply(function, q, k, cos, sin):
        result = calls.call(function, {"q": q, "k": k, "cos": cos, "sin": sin})
        return tuple(result) if isinstance(result, list) else result

    def turning(seed, batch, length, sizes):
        q = numbers(seed, batch, sizes["num_attention_heads"], length, sizes["head_dim"])
        k = numbers(seed + 1, batch, sizes["num_key_value_heads"], length, sizes["head_dim"])
        cos, sin = gemma.GemmaRotaryEmbedding(sizes["head_dim"])(q, torch.arange(1, length + 1).expand(batch, -1))
        return q, k, cos, sin

    def stepwise(name, right):
        """Attention and layer: the whole at once, or in steps with a cache."""

        def run(kind, x, mask, positions, sizes):
            made = maker.loaded(name, kind, right, sizes)
            cache = new_cache(maker, kind, sizes, len(x)) if len(sizes["steps"]) > 1 else None
            results, start = [], 0
            for length in sizes["steps"]:
                end = start + length
                states, places = x[:, start:end], positions[:, start:end]
                rope = gemma.GemmaRotaryEmbedding(sizes["head_dim"], sizes["rope_theta"])(states, places)
                given = {"hidden_states": states, "attention_mask": mask[:, :, start:end, :end],
                         "position_ids": places, "kv_cache": cache, "position_embeddings": rope}  # fmt: skip
                results.append(calls.first_tensor(calls.call(made, given)))
                if hasattr(cache, "advance"):  # a cache that the model moves on, when all layers are done
                    cache.advance(length)
                start = end
            return {"the first tokens": results[0], "the last token": results[1]} if len(results) > 1 else results[0]

        return run

    def decoder(name, right):
        def run(kind, x, mask, positions, sizes):
            made = maker.loaded(name, kind, right, sizes)
            cache = new_cache(maker, kind, sizes, len(x)) if len(sizes["steps"]) > 1 else None
            results, start = [], 0
            for length in sizes["steps"]:
                end = start + length
                given = {"attention_mask": mask[:, :, start:end, :end], "position_ids": positions[:, start:end],
                         "inputs_embeds": x[:, start:end], "kv_cache": cache}  # fmt: skip
                results.append(calls.first_tensor(calls.call(made, given)))
                start = end
            return {"the first tokens": results[0], "the last token": results[1]} if len(results) > 1 else results[0]

        return run

    repeat_cases = [
        Case((numbers(0, 3, 2, 5, 4), 4), sizes={"B": 3, "H_kv": 2, "T": 5, "d": 4}, note="n_rep = 4"),
        Case((numbers(1, 2, 3, 7, 6), 2), sizes={"B": 2, "H_kv": 3, "T": 7, "d": 6}, note="n_rep = 2"),
        Case((numbers(2, 2, 4, 3, 6), 1), sizes={"B": 2, "H_kv": 4, "T": 3, "d": 6}, note="n_rep = 1"),
        Case((numbers(3, 3, 2, 1, 6), 4), sizes={"B": 3, "H_kv": 2, "T": 1, "d": 6}, note="n_rep = 4, one token"),
    ]
    norm_cases = text_cases(tokens)
    half = {"B": 2, "L": 3, "D": sizes["hidden_size"]}
    norm_cases.append(Case((numbers(3, 2, 3, 16, dtype=torch.bfloat16), sizes), sizes=half))
    large = numbers(4, 2, 3, 16, scale=500, dtype=torch.float16)
    norm_cases.append(Case((large, sizes), sizes=half, note="numbers of about 500, whose squares float16 cannot hold"))
    rotary_cases = text_cases(angles)
    far = torch.tensor([[3, 259, 300, 501, 599]])
    note = "positions beyond 256"
    x = numbers(5, 1, 2, 5, sizes["head_dim"], dtype=torch.bfloat16)
    rotary_cases.append(Case((x, far, sizes), sizes={"L": 5, "d": sizes["head_dim"]}, note=note))
    attention = ("GemmaRotaryEmbedding", "rotate_half", "apply_rotary_pos_emb", "repeat_kv", "KVCache")
    cached = {"cached": True}
    return [
        Part("KVCache", "11", standins.KVCache,
             [Case((Sizes(**sizes, steps=(4, 1, 1), layers=3),), note="4, 1 and 1 tokens, 3 layers"),
              Case((Sizes(**OTHER_TEXT, steps=(5, 2), layers=2),), note="5 and 2 tokens, 2 layers")],
             use_cache(maker), mistakes=imitations.CACHES,
             places={"wrong axis counted": "shape|size|len", "layers counted": r"len\(", "newest first": "cat",
                     "joined along the heads": "cat", "new tokens only": "return",
                     "key and value swapped": "return|append", "keys for values": "return.*,"}),
        simple(maker, "GemmaRMSNorm", gemma.GemmaRMSNorm, sizes, chapter="06", cases=norm_cases, tasks=("06.3",),
               mistakes=imitations.NORMS),
        Part("GemmaRotaryEmbedding", "07", standins.GemmaRotaryEmbedding, rotary_cases, rotary, ("07.3",),
             mistakes=imitations.ROTARIES,
             places={"// instead of /": "//", "base not passed on": r"^\s*self\.base\s*=\s*[\d.]+|\*\*"}),
        Part("rotate_half", "07", gemma.rotate_half,
             [Case((numbers(0, 2, 3, 4, 8),), sizes={"B": 2, "H": 3, "L": 4, "d": 8}),
              Case((numbers(1, 1, 4, 2, 6),), sizes={"H": 4, "L": 2, "d": 6})],
             lambda function, x: calls.call(function, {"hidden_states": x}), ("07.2",)),
        Part("apply_rotary_pos_emb", "07", standins.apply_rotary_pos_emb, text_cases(turning),
             lambda function, q, k, cos, sin, sizes: apply(function, q, k, cos, sin), mistakes=imitations.TURNS,
             uses=("rotate_half",)),
        simple(maker, "GemmaMLP", gemma.GemmaMLP, sizes, chapter="09", cases=text_cases(tokens),
               mistakes=imitations.GATED_MLPS),
        Part("repeat_kv", "08", gemma.repeat_kv, repeat_cases,
             lambda function, x, n_rep: calls.call(function, {"hidden_states": x, "n_rep": n_rep}),
             mistakes=early_imitations.REPEATS),
        Part("GemmaAttention", "08", standins.GemmaAttention, text_cases(attended, **cached),
             stepwise("GemmaAttention", standins.GemmaAttention), ("08.5",), uses=attention,
             fit=maker.fits("GemmaAttention", standins.GemmaAttention, sizes),
             mistakes=imitations.ATTENTIONS,
             places={"scale of the width": r"self\.\w*scale\w* *=", "cache not used": "kv_cache|cache",
                     "value turned too": "apply_rotary", "RoPE forgotten": "rotary|def forward"}),
        Part("GemmaDecoderLayer", "09", standins.GemmaDecoderLayer, text_cases(attended, **cached),
             stepwise("GemmaDecoderLayer", standins.GemmaDecoderLayer), ("09.2",),
             fit=maker.fits("GemmaDecoderLayer", standins.GemmaDecoderLayer, sizes),
             uses=("GemmaAttention", "GemmaMLP", "GemmaRMSNorm"), places={"cache not passed on": r"self_attn\("},
             mistakes=imitations.DECODER_LAYERS),
        Part("GemmaModel", "09", standins.GemmaModel, text_cases(attended, **cached),
             decoder("GemmaModel", standins.GemmaModel), mistakes=imitations.MODELS,
             fit=maker.fits("GemmaModel", standins.GemmaModel, sizes), uses=("GemmaDecoderLayer", "GemmaRMSNorm"),
             places={"scale forgotten": r"= *\w*embed\w* *$",
                     "layers share a cache entry": "range|enumerate|DecoderLayer",
                     "cache not passed on": r"layer\w*\("}),
        Part("GemmaForCausalLM", "09", standins.GemmaForCausalLM, text_cases(attended, **cached),
             decoder("GemmaForCausalLM", standins.GemmaForCausalLM), uses=("GemmaModel",), mistakes=imitations.HEADS,
             fit=maker.fits("GemmaForCausalLM", standins.GemmaForCausalLM, sizes),
             places={"cache not passed on": r"self\.model\("}),
    ]  # fmt: skip


# --- the whole -------------------------------------------------------------------------------------------------------

POSITIONS = r"position_ids\s*="


def whole_parts(maker: Maker) -> list[Part]:
    sizes = calls.whole()

    def run(kind, input_ids, pixel_values, sizes):
        name = "PaliGemmaForConditionalGeneration"
        made = maker.loaded(name, kind, standins.PaliGemmaForConditionalGeneration, sizes)
        cache = new_cache(maker, kind, sizes["text_config"], 1)
        mask = torch.ones_like(input_ids)
        results, step = [], input_ids
        for new in (7, 9, None):
            given = {"input_ids": step, "pixel_values": pixel_values, "attention_mask": mask, "kv_cache": cache}
            result = calls.first_tensor(calls.call(made, given))
            results.append(result[:, -1:] if isinstance(result, torch.Tensor) and result.ndim == 3 else result)
            step = torch.tensor([[new]]) if new else None
            mask = torch.cat([mask, torch.ones(1, 1, dtype=mask.dtype)], dim=-1)
        return dict(zip(("logits of the prompt", "of the first new token", "of the second"), results, strict=True))

    def project(kind, x, sizes):
        made = maker.loaded("PaliGemmaMultiModalProjector", kind, gemma.PaliGemmaMultiModalProjector, sizes_of(sizes))
        return calls.first_tensor(calls.call(made, {"hidden_states": x}))

    def sizes_of(vision_sizes):
        return calls.whole(vision_sizes=vision_sizes, projection_dim=16)

    def draw(function, probs, p):
        result = calls.call(function, {"probs": probs.expand(3000, -1).clone(), "p": p})
        counts = torch.bincount(result.flatten(), minlength=probs.shape[-1]).double() / result.numel()
        return torch.where(counts > 0.004, counts, 0.0)

    prompt = torch.tensor([[48] * sizes["vision_config"]["num_image_tokens"] + [2, 11, 23, 5, 3]])
    image = numbers(0, 1, 3, sizes["vision_config"]["image_size"], sizes["vision_config"]["image_size"])
    probs = torch.tensor([[0.05, 0.4, 0.02, 0.25, 0.18, 0.1]])
    name = "PaliGemmaForConditionalGeneration"
    right = standins.PaliGemmaForConditionalGeneration
    return [
        Part("PaliGemmaMultiModalProjector", "10", gemma.PaliGemmaMultiModalProjector, vision_cases(patches), project,
             mistakes=imitations.PROJECTORS,
             fit=maker.fits("PaliGemmaMultiModalProjector", gemma.PaliGemmaMultiModalProjector, sizes)),
        Part(name, "10", right, [Case((prompt, image, sizes), note="a prompt, then two more tokens with the cache")],
             run, mistakes=imitations.MERGES, fit=maker.fits(name, right, sizes), variants=(imitations.InParts,),
             tolerance=1e-4,
             uses=("SiglipVisionModel", "PaliGemmaMultiModalProjector", "GemmaForCausalLM", "KVCache"),
             places={"picture not divided": r"^\s*\w+ = image_features\s*$|masked_scatter",
                     "positions from 0": POSITIONS, "position of the new token": POSITIONS,
                     "one position for all": POSITIONS, "causal prompt": "mask"}),
        Part("sample_top_p", "11", standins.sample_top_p, [Case((probs, 0.6)), Case((probs, 0.95))], draw,
             tolerance=0.05, places={"crossing token dropped": "> *p|>= *p|> *top_p"},
             mistakes=imitations.DRAWS),
    ]  # fmt: skip


def line_of_pattern(pattern: str, lines: list[str], first: int) -> int | None:
    """The first line that matches, counted from `first`."""
    return next((first + i for i, line in enumerate(lines) if re.search(pattern, line.split("#")[0])), None)
