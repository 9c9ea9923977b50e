"""The parts of the model in the order in which the video builds them: inputs, the right code, the usual mistakes.

Sizes are small, all different, and none of them the model's, so that a size that is written into the code shows. The
names of mistakes are those of the exercises' checks, whose imitations are used as they are; what only the video's form
has (the cache that grows, the decoder that scales, the merge) has imitations here.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from ... import modeling_gemma as gemma
from ... import modeling_siglip as siglip
from ... import processing_paligemma as processing
from ...swap import hidden
from ..tasks import Case, Mistake, Task, find_task, numbers
from . import calls, standins
from .calls import Sizes


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


# --- modules ----------------------------------------------------------------------------------------------------------


def with_weights(module: nn.Module) -> nn.Module:
    """Random weights, none of them zero: all zeros would hide mistakes."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module.eval()


@dataclass
class Maker:
    """Makes modules from sizes, with the learner's configuration classes where they are right."""

    kinds: dict[str, type] = field(default_factory=dict)  # {"GemmaConfig": theirs}
    cache: type = standins.KVCache  # the learner's, where it is right

    def given(self, name: str, sizes: Sizes) -> dict:
        """What constructors of this part take, by role."""
        config = calls.configuration(sizes, self.kinds)
        if name == "GemmaRMSNorm":
            return {"dim": sizes["hidden_size"], "eps": sizes["rms_norm_eps"], "config": config}
        if name == "GemmaRotaryEmbedding":
            given = {"dim": sizes["head_dim"], "max_position_embeddings": 64, "base": sizes["rope_theta"]}
            return {**given, "config": config}
        if name in ("GemmaAttention", "GemmaDecoderLayer"):
            return {"config": config, "layer_idx": 0}
        return {"config": config}

    def make(self, name: str, kind, sizes: Sizes) -> nn.Module:
        made = kind(**calls.arguments(kind, self.given(name, sizes)))
        if not isinstance(made, nn.Module):
            raise TypeError(f"{kind.__name__} makes a {type(made).__name__}, expected a subclass of nn.Module")
        if hasattr(made, "tie_weights"):
            made.tie_weights()
        return made

    def right(self, name: str, kind, sizes: Sizes) -> nn.Module:
        made = kind(**calls.arguments(kind, self.given(name, sizes)))
        if hasattr(made, "tie_weights"):
            made.tie_weights()
        return with_weights(made)

    def loaded(self, name: str, kind, reference, sizes: Sizes) -> nn.Module:
        """The learner's module with the right one's weights: where names differ, by the likeliest name."""
        made = self.make(name, kind, sizes)
        right = self.right(name, reference, sizes)
        own, source = dict(made.named_parameters(remove_duplicate=False)), dict(right.state_dict())
        pairs = {key: key for key in own if key in source}
        pairs.update(renamed(own, source))
        with torch.no_grad():
            for key, other in pairs.items():
                if own[key].shape == source[other].shape:
                    own[key].copy_(source[other])
        return made.eval()

    def fits(self, name: str, reference, sizes: Sizes) -> Callable:
        """A function that compares the parameters of the learner's module with the right one's, by name and shape."""

        def compare(kind) -> list[tuple[str, str, str, str]]:
            made = self.make(name, kind, sizes)
            right = self.right(name, reference, sizes)
            return list(misfits(made, right, name))

        return compare


def renamed(own: dict, source: dict) -> dict[str, str]:
    """{the learner's name: the usual one} for parameters of another name, by shape and likeness."""
    import difflib

    found, free = {}, [key for key in source if key not in own]
    for key in [key for key in own if key not in source]:
        fitting = [other for other in free if source[other].shape == own[key].shape]
        close = difflib.get_close_matches(key, fitting, n=1, cutoff=0.5)
        if close:
            found[key] = close[0]
            free.remove(close[0])
    return found


NAMES = (
    "the published weights are found by their names: a parameter of another name gets none, and load_state_dict with "
    "strict=False, as in the video, says nothing"
)


def misfits(made: nn.Module, right: nn.Module, name: str):
    """(name, what was seen, what it means, attribute) for each parameter that does not match."""
    own, source = dict(made.named_parameters(remove_duplicate=False)), dict(right.state_dict())
    tied = {id(value) for key, value in own.items() if key in source}
    others = {key: other for key, other in renamed(own, source).items() if id(own[key]) not in tied}
    told = {shorter(key, other): key for key, other in others.items()}
    if told:
        yield (
            "names of weights",
            "; ".join(f"your {mine} is to be called {theirs}" for mine, theirs in told),
            NAMES,
            next(iter(told.values())).split(".")[0],
        )
    for key, value in own.items():
        if key in source and value.shape != source[key].shape:
            turned = " (it looks transposed)" if list(value.shape) == list(source[key].shape)[::-1] else ""
            saw = f"{key} has the shape {list(value.shape)}, expected {list(source[key].shape)}{turned}"
            yield "weights do not fit", saw, "sizes in __init__ are exchanged, or one is written in", key.split(".")[0]
        if key not in source and key not in others and id(value) not in tied:
            if key.endswith(".bias") and key[: -len("bias")] + "weight" in source:
                saw, means = f"you have {key}, the published weights have none", "this nn.Linear needs bias=False"
            else:
                saw, means = f"you have a parameter {key}, which the published weights do not have", NAMES
            yield "weights do not fit", saw, means, key.split(".")[0]
    twins = {id(value): key for key, value in right.named_parameters()}
    for key, value in right.named_parameters(remove_duplicate=False):
        twin = twins[id(value)]
        if twin != key and key in own and twin in own and own[key] is not own[twin]:
            yield (
                "head not tied",
                f"{key} and {twin} are two tensors",
                "Gemma's head is the embedding table (tied weights), and no file has weights for it: tie_weights has "
                "to make the two one",
                key.split(".")[0],
            )
    for key in source:
        if key not in own and key not in others.values():
            if key.endswith(".bias") and key[: -len("bias")] + "weight" in own:
                saw, means = f"{key} is missing", "this layer is made with bias=False; the published one has a bias"
            else:
                saw = f"the parameter {key} is missing{hidden(made, key)}"
                means = "what is not an nn.Parameter or nn.Module in an attribute of its own gets no weights"
            yield "weights do not fit", saw, means, key.split(".")[0]
    for path, module in made.named_modules():
        if path and getattr(module, "layer_idx", 0) is None:
            saw = f"{path} is made without its layer_idx"
            yield "layer_idx not passed on", saw, "the cache keeps each layer's keys under it", path.split(".")[0]
            break
    if name == "GemmaRMSNorm":
        fresh = dict(made.named_parameters()).get("weight")
        if fresh is not None and bool((fresh == 1).all()):
            yield (
                "weight starts at one",
                "a new GemmaRMSNorm has weights of one",
                "Gemma scales by 1 + weight, so weights start at zero. With trained weights nobody notices; a model "
                "that is trained from the start would double everything at each norm",
                "weight",
            )


def shorter(key: str, other: str) -> tuple[str, str]:
    """Two names of a parameter without the end that they share: ("attn", "self_attn"), not ("attn.k_proj.weight", …)"""
    mine, theirs = key.split("."), other.split(".")
    while len(mine) > 1 and len(theirs) > 1 and mine[-1] == theirs[-1]:
        mine.pop()
        theirs.pop()
    return ".".join(mine), ".".join(theirs)


# --- inputs -----------------------------------------------------------------------------------------------------------

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


# --- the parts --------------------------------------------------------------------------------------------------------


def make_parts(maker: Maker) -> list[Part]:
    """All parts, in the order of the video."""
    return [*config_parts(maker)[:1], *vision_parts(maker), *processing_parts(), *config_parts(maker)[1:],
            *gemma_parts(maker), *whole_parts(maker)]  # fmt: skip


def simple(maker: Maker, name: str, right, sizes: Sizes, **more) -> Part:
    """A module with one tensor in and one (or the first of several) out."""

    def run(kind, x, sizes):
        return calls.first_tensor(calls.call(maker.loaded(name, kind, right, sizes), {"hidden_states": x}))

    return Part(name=name, right=right, run=run, fit=maker.fits(name, right, sizes), **more)


# Configurations


# What a configuration may leave out; the others are in every published config.json.
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
            parameters = calls.inspect.signature(kind).parameters
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


# The image encoder


class NoGelu(siglip.SiglipMLP):
    def forward(self, hidden_states):
        return self.fc2(F.relu(self.fc1(hidden_states)))


class OneLinearTwice(siglip.SiglipMLP):
    def forward(self, hidden_states):
        return self.fc1(F.gelu(self.fc1(hidden_states), approximate="tanh"))


def default_eps(kind):
    """The class with LayerNorms whose eps is torch's own."""

    class Default(kind):
        def __init__(self, config):
            super().__init__(config)
            for module in self.children():
                if isinstance(module, nn.LayerNorm):
                    module.eps = 1e-5

    return Default


EPS = Mistake("eps not passed on", "your numbers are those of a LayerNorm with torch's own eps, 1e-5: the "
              "configuration's layer_norm_eps is not passed on", default_eps(siglip.SiglipEncoderLayer))  # fmt: skip


class OnlyLastLayer(siglip.SiglipEncoder):
    def forward(self, inputs_embeds):
        return self.layers[-1](inputs_embeds)


class OneLayerLess(siglip.SiglipEncoder):
    def forward(self, inputs_embeds):
        for layer in self.layers[:-1]:
            inputs_embeds = layer(inputs_embeds)
        return inputs_embeds


class FirstLayerAgain(siglip.SiglipEncoder):
    def forward(self, inputs_embeds):
        for _ in self.layers:
            inputs_embeds = self.layers[0](inputs_embeds)
        return inputs_embeds


class NoLastNorm(siglip.SiglipVisionTransformer):
    def forward(self, pixel_values):
        return self.encoder(self.embeddings(pixel_values))


class NoEncoder(siglip.SiglipVisionTransformer):
    def forward(self, pixel_values):
        return self.post_layernorm(self.embeddings(pixel_values))


LAYERS = [
    Mistake("only the last layer used", "every layer gets what came in, so the last one alone counts: each is to get "
            "what the one before it made", OnlyLastLayer),
    Mistake("a layer left out", "your numbers are those without the last layer", OneLayerLess),
    Mistake("one layer for all", "your numbers are those of the first layer, used again and again", FirstLayerAgain),
]  # fmt: skip


def vision_parts(maker: Maker) -> list[Part]:
    sizes = calls.vision()
    return [
        simple(maker, "SiglipVisionEmbeddings", siglip.SiglipVisionEmbeddings, sizes, chapter="02",
               cases=vision_cases(pixels), tasks=("02.4",)),
        simple(maker, "SiglipMLP", siglip.SiglipMLP, sizes, chapter="04", cases=vision_cases(patches), tasks=("04.2",),
               mistakes=[
                   Mistake("ReLU instead of GELU", "your numbers are those of ReLU", NoGelu),
                   Mistake("fc1 used twice", "your numbers need fc1 in both places", OneLinearTwice),
               ]),
        simple(maker, "SiglipAttention", siglip.SiglipAttention, sizes, chapter="03", cases=vision_cases(patches),
               tasks=("03.4",), places={"scale by the wrong size": r"self\.\w*scale\w* *="}),
        simple(maker, "SiglipEncoderLayer", siglip.SiglipEncoderLayer, sizes, chapter="04",
               cases=vision_cases(patches), tasks=("04.3",), mistakes=[EPS], uses=("SiglipAttention", "SiglipMLP")),
        simple(maker, "SiglipEncoder", siglip.SiglipEncoder, sizes, chapter="04", cases=vision_cases(patches),
               mistakes=LAYERS, uses=("SiglipEncoderLayer",)),
        simple(maker, "SiglipVisionTransformer", siglip.SiglipVisionTransformer, sizes, chapter="04",
               cases=vision_cases(pixels), tasks=("04.5",), uses=("SiglipVisionEmbeddings", "SiglipEncoder"),
               mistakes=[
                   Mistake("last norm forgotten", "your numbers are those without post_layernorm", NoLastNorm),
                   Mistake("encoder skipped", "your numbers are those of the embeddings, normalised: the layers are "
                           "never used", NoEncoder),
                   Mistake("eps not passed on", EPS.message, default_eps(siglip.SiglipVisionTransformer)),
               ]),
        simple(maker, "SiglipVisionModel", siglip.SiglipVisionModel, sizes, chapter="04", cases=vision_cases(pixels),
               uses=("SiglipVisionTransformer",)),
    ]  # fmt: skip


# The processor


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

    def swapped_sides(image, size, resample=None, **_):
        return image.resize((size[0], size[1]), resample=resample)

    wide, tall = picture(0, 13, 9), picture(1, 7, 10)
    array = np.asarray(wide)
    floats = np.asarray(tall, dtype=np.float32) / 255
    return [
        Part("add_image_tokens_to_prompt", "05", processing.add_image_tokens_to_prompt,
             [Case(("caption en", "<bos>", 5, "<image>")), Case(("", "<s>", 3, "<patch>"))], prompt, ("05.1",)),
        Part("resize", "01", processing.resize,
             [Case((wide, (6, 8), Image.Resampling.BICUBIC)), Case((tall, (11, 4), Image.Resampling.NEAREST))], resized,
             mistakes=[
                 Mistake("height and width swapped", "PIL's resize takes (width, height), `size` is (height, width)",
                         swapped_sides),
                 Mistake("other interpolation", "`resample` is not passed on: your picture is bicubic whatever it says",
                         lambda image, size, resample=None, **_: image.resize(size[::-1], Image.Resampling.BICUBIC)),
             ]),
        Part("rescale", "01", processing.rescale, [Case((array, 1 / 255.0)), Case((array, 0.25))], rescaled,
             ("01.1",)),
        Part("normalize", "01", processing.normalize,
             [Case((floats, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])), Case((floats, [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]))],
             normalized, ("01.2",)),
        Part("process_images", "01", processing.process_images,
             [Case(([wide, tall], (6, 8))), Case(([tall], (5, 5)))], processed, ("01.4",),
             uses=("resize", "rescale", "normalize"), places={
                 "other interpolation": "resize", "not normalised": "normali[sz]e|rescale",
                 "not finite": "normali[sz]e",
             }),
    ]  # fmt: skip


# The decoder


class FlooredExponent(gemma.GemmaRotaryEmbedding):
    def inv_freq(self, device=None):
        return 1.0 / self.base ** (torch.arange(0, self.dim, 2, device=device) // self.dim).float()


def turned(q=None, k=None, cos=None, sin=None, query="q", key="k"):
    half = {"q": gemma.rotate_half(q), "k": gemma.rotate_half(k)}
    return q * cos + half[query] * sin, k * cos + half[key] * sin


def turn(change: Callable) -> Callable:
    """apply_rotary_pos_emb with a mistake: `change` gets q, k, and cos and sin with the axis of the heads."""
    return lambda q, k, cos, sin: change(q, k, cos.unsqueeze(1), sin.unsqueeze(1))


def backwards(x):
    return -gemma.rotate_half(x)


TURNS = [
    Mistake("rotate_half of the other", "the keys are turned with rotate_half of the queries",
            turn(lambda q, k, cos, sin: turned(q, k, cos, sin, key="q"))),
    Mistake("rotate_half of the other", "the queries are turned with rotate_half of the keys",
            turn(lambda q, k, cos, sin: turned(q, k, cos, sin, query="k"))),
    Mistake("cos and sin swapped", "your numbers are those you get with cos and sin exchanged",
            turn(lambda q, k, cos, sin: turned(q, k, sin, cos))),
    Mistake("key not turned", "the keys come back as they went in",
            turn(lambda q, k, cos, sin: (turned(q, k, cos, sin)[0], k))),
    Mistake("query not turned", "the queries come back as they went in",
            turn(lambda q, k, cos, sin: (q, turned(q, k, cos, sin)[1]))),
    Mistake("turned backwards", "your numbers are those of the opposite direction: a minus where a plus belongs",
            turn(lambda q, k, cos, sin: turned(q, k, cos, -sin))),
    Mistake("quarter turn forgotten", "x * cos + x * sin: the second term needs rotate_half",
            turn(lambda q, k, cos, sin: (q * cos + q * sin, k * cos + k * sin))),
    Mistake("query and key swapped", "the two results come back in the other order",
            turn(lambda q, k, cos, sin: turned(q, k, cos, sin)[::-1])),
    Mistake("not broadcast over heads", "queries and keys get the axis that cos and sin need: it is these that have "
            "none for the heads", lambda q, k, cos, sin: turned(q.unsqueeze(1), k.unsqueeze(1), cos, sin)),
    Mistake("not broadcast over heads", "cos and sin [B, L, d] need an axis of length 1 for the heads: unsqueeze(1)",
            lambda q, k, cos, sin: turned(q, k, cos, sin)),
    Mistake("not broadcast over heads", "cos and sin [B, L, d] need their axis for the heads at place 1, yours is at 2",
            lambda q, k, cos, sin: turned(q, k, cos.unsqueeze(2), sin.unsqueeze(2))),
]  # fmt: skip


class OneNorm(gemma.GemmaRMSNorm):
    def forward(self, x):
        normed = x.float() * torch.rsqrt(x.float().pow(2).mean(1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).type_as(x)


class ScaleByHidden(gemma.GemmaAttention):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.scale = config.hidden_size**-0.5


class ScaleByQueries(gemma.GemmaAttention):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.scale = (config.num_attention_heads * config.head_dim) ** -0.5


class CacheForgotten(gemma.GemmaAttention):
    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        return super().forward(hidden_states, position_embeddings, attention_mask, None)


def growing(**changes) -> type:
    """The growing cache with some of its methods replaced."""
    return type("Growing", (standins.KVCache,), changes)


def in_order(old, new):
    return [old, new]


def newest_first(old, new):
    return [new, old]


def joined(keys: Callable = in_order, values: Callable = in_order, axis: int = -2):
    def update(self, key_states, value_states, layer_idx):
        if layer_idx == len(self.key_cache):
            self.key_cache.append(key_states)
            self.value_cache.append(value_states)
        else:
            self.key_cache[layer_idx] = torch.cat(keys(self.key_cache[layer_idx], key_states), dim=axis)
            self.value_cache[layer_idx] = torch.cat(values(self.value_cache[layer_idx], value_states), dim=axis)
        return self.key_cache[layer_idx], self.value_cache[layer_idx]

    return update


def values_swapped(self, key_states, value_states, layer_idx):
    return standins.KVCache.update(self, key_states, value_states, layer_idx)[::-1]


def keys_twice(self, key_states, value_states, layer_idx):
    return (standins.KVCache.update(self, key_states, value_states, layer_idx)[0],) * 2


def new_only(self, key_states, value_states, layer_idx):
    standins.KVCache.update(self, key_states, value_states, layer_idx)
    return key_states, value_states


def one_layer(self, key_states, value_states, layer_idx):
    return standins.KVCache.update(self, key_states, value_states, 0)


def counted(axis):
    return lambda self: self.key_cache[0].shape[axis] if self.key_cache else 0


CACHES = [
    Mistake("newest first", "the new tokens are put before those of earlier: keys and values lie in the wrong order",
            growing(update=joined(newest_first, newest_first))),
    Mistake("newest first", "the new tokens' keys are put before those of earlier: they no longer lie beside their "
            "values", growing(update=joined(keys=newest_first))),
    Mistake("newest first", "the new tokens' values are put before those of earlier: they no longer lie beside their "
            "keys", growing(update=joined(values=newest_first))),
    Mistake("key and value swapped", "what comes back are the values and then the keys",
            growing(update=values_swapped)),
    Mistake("keys for values", "both results are the keys: the second is to be the values", growing(update=keys_twice)),
    Mistake("new tokens only", "what comes back are the new tokens alone, without those held",
            growing(update=new_only)),
    Mistake("replaced instead of joined", "the new tokens replace those held",
            growing(update=joined(lambda old, new: [new], lambda old, new: [new]))),
    Mistake("one layer for all", "every layer's keys go into the first layer's place: layer_idx is not used",
            growing(update=one_layer)),
    Mistake("joined along the heads", "new tokens are joined along the axis of the heads, or of the features",
            growing(update=joined(axis=1))),
    Mistake("wrong axis counted", "num_items counts the heads (axis 1): tokens are axis -2",
            growing(num_items=counted(1))),
    Mistake("wrong axis counted", "num_items counts the features (axis -1): tokens are axis -2",
            growing(num_items=counted(-1))),
    Mistake("wrong axis counted", "num_items counts the rows of the batch: tokens are axis -2",
            growing(num_items=counted(0))),
    Mistake("layers counted", "num_items counts the layers: it is to count the tokens that one layer holds",
            growing(num_items=lambda self: len(self.key_cache))),
]  # fmt: skip


def use_cache(maker: Maker):
    def run(kind, steps, layers, sizes):
        given = {"config": calls.configuration(sizes, maker.kinds), "batch_size": 2, "max_length": 64}
        cache = kind(**calls.arguments(kind, given)) if kind.__init__ is not object.__init__ else kind()
        told, held = {"num_items of an empty cache": count(cache)}, 0
        for step, length in enumerate(steps):
            held += length
            for layer in range(layers):
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
             [Case(((4, 1, 1), 3, sizes), note="4, 1 and 1 tokens, 3 layers"),
              Case(((5, 2), 2, OTHER_TEXT), note="5 and 2 tokens, 2 layers")], use_cache(maker), mistakes=CACHES,
             places={"wrong axis counted": "shape|size|len", "layers counted": r"len\(", "newest first": "cat",
                     "joined along the heads": "cat", "new tokens only": "return",
                     "key and value swapped": "return|append", "keys for values": "return.*,"}),
        simple(maker, "GemmaRMSNorm", gemma.GemmaRMSNorm, sizes, chapter="06", cases=norm_cases, tasks=("06.3",),
               mistakes=[Mistake("wrong axis", "your numbers are those you get when the mean runs over the tokens "
                                 "instead of the features of one token", OneNorm)]),
        Part("GemmaRotaryEmbedding", "07", standins.GemmaRotaryEmbedding, rotary_cases, rotary, ("07.3",),
             mistakes=[Mistake("// instead of /", "the exponents are rounded down to 0 (// instead of /): every pair "
                               "turns at the same speed", FlooredExponent)],
             places={"// instead of /": "//", "base not passed on": r"^\s*self\.base\s*=\s*[\d.]+|\*\*"}),
        Part("rotate_half", "07", gemma.rotate_half,
             [Case((numbers(0, 2, 3, 4, 8),), sizes={"B": 2, "H": 3, "L": 4, "d": 8}),
              Case((numbers(1, 1, 4, 2, 6),), sizes={"H": 4, "L": 2, "d": 6})],
             lambda function, x: calls.call(function, {"hidden_states": x}), ("07.2",)),
        Part("apply_rotary_pos_emb", "07", standins.apply_rotary_pos_emb, text_cases(turning),
             lambda function, q, k, cos, sin, sizes: apply(function, q, k, cos, sin), mistakes=TURNS,
             uses=("rotate_half",)),
        simple(maker, "GemmaMLP", gemma.GemmaMLP, sizes, chapter="09", cases=text_cases(tokens), tasks=("09.1",)),
        Part("repeat_kv", "08", gemma.repeat_kv, repeat_cases,
             lambda function, x, n_rep: calls.call(function, {"hidden_states": x, "n_rep": n_rep}), ("08.4",)),
        Part("GemmaAttention", "08", standins.GemmaAttention, text_cases(attended, **cached),
             stepwise("GemmaAttention", standins.GemmaAttention), ("08.5",), uses=attention,
             fit=maker.fits("GemmaAttention", standins.GemmaAttention, sizes),
             mistakes=[
                 Mistake("scale of the width", "the scores are divided by the square root of hidden_size: the sum that "
                         "makes up a score has head_dim terms", ScaleByHidden),
                 Mistake("scale of the width", "the scores are divided by the square root of all heads' width "
                         "together: the sum that makes up a score has head_dim terms", ScaleByQueries),
                 Mistake("cache not used", "without a cache all is right; with one, what it holds is not used",
                         CacheForgotten),
             ], places={"scale of the width": r"self\.\w*scale\w* *=", "cache not used": "kv_cache|cache",
                        "value turned too": "apply_rotary",
                        "RoPE forgotten": "rotary|def forward"}),
        Part("GemmaDecoderLayer", "09", standins.GemmaDecoderLayer, text_cases(attended, **cached),
             stepwise("GemmaDecoderLayer", standins.GemmaDecoderLayer), ("09.2",),
             fit=maker.fits("GemmaDecoderLayer", standins.GemmaDecoderLayer, sizes),
             uses=("GemmaAttention", "GemmaMLP", "GemmaRMSNorm"), places={"cache not passed on": r"self_attn\("},
             mistakes=[Mistake("cache not passed on", LOST, cache_lost(standins.GemmaDecoderLayer))]),
        Part("GemmaModel", "09", standins.GemmaModel, text_cases(attended, **cached),
             decoder("GemmaModel", standins.GemmaModel), mistakes=MODELS,
             fit=maker.fits("GemmaModel", standins.GemmaModel, sizes), uses=("GemmaDecoderLayer", "GemmaRMSNorm"),
             places={"scale forgotten": r"= *\w*embed\w* *$",
                     "layers share a cache entry": "range|enumerate|DecoderLayer",
                     "cache not passed on": r"layer\w*\("}),
        Part("GemmaForCausalLM", "09", standins.GemmaForCausalLM, text_cases(attended, **cached),
             decoder("GemmaForCausalLM", standins.GemmaForCausalLM), uses=("GemmaModel",), mistakes=HEADS,
             fit=maker.fits("GemmaForCausalLM", standins.GemmaForCausalLM, sizes),
             places={"cache not passed on": r"self\.model\("}),
    ]  # fmt: skip


def new_cache(maker: Maker, kind, sizes: Sizes, batch_size: int):
    """The learner's cache for the learner's parts, where it is right; the course's in the video's form for others."""
    if kind.__module__.startswith("paligemma.") or maker.cache is standins.KVCache:
        return standins.KVCache()
    given = {"config": calls.configuration(sizes, maker.kinds), "batch_size": batch_size, "max_length": 64}
    return maker.cache(**calls.arguments(maker.cache, given))


def cache_lost(kind) -> type:
    """The class, with the cache not passed on to what is inside."""

    class Lost(kind):
        def forward(self, *arguments, **named):
            return super().forward(*arguments, **{**named, "kv_cache": None})

    return Lost


LOST = "without a cache all is right; with one, it does not reach the attention: kv_cache has to be passed on"


class NotScaled(standins.GemmaModel):
    def scaled(self, inputs_embeds):
        return inputs_embeds


class ScaledDown(standins.GemmaModel):
    def scaled(self, inputs_embeds):
        return inputs_embeds / self.config.hidden_size**0.5


class ScaledByWidth(standins.GemmaModel):
    def scaled(self, inputs_embeds):
        return inputs_embeds * self.config.hidden_size


class NoFinalNorm(standins.GemmaModel):
    def forward(self, attention_mask=None, position_ids=None, inputs_embeds=None, kv_cache=None):
        return self.through_layers(self.scaled(inputs_embeds), attention_mask, position_ids, kv_cache)


class NormInTheLoop(standins.GemmaModel):
    def through_layers(self, hidden_states, *arguments):
        for layer in self.layers:
            hidden_states = self.norm(layer(hidden_states, *arguments))
        return hidden_states

    def forward(self, attention_mask=None, position_ids=None, inputs_embeds=None, kv_cache=None):
        return self.through_layers(self.scaled(inputs_embeds), attention_mask, position_ids, kv_cache)


class LastLayerOnly(standins.GemmaModel):
    def through_layers(self, hidden_states, *arguments):
        for layer in self.layers:
            result = layer(hidden_states, *arguments)
        return result


class SkipsLast(standins.GemmaModel):
    def through_layers(self, hidden_states, *arguments):
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, *arguments)
        return hidden_states


class SameIndex(standins.GemmaModel):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.self_attn.layer_idx = 0


MODELS = [
    Mistake("scale forgotten", "your numbers are those without the factor sqrt(hidden_size) on the embeddings",
            NotScaled),
    Mistake("divided instead of multiplied", "the embeddings are divided by sqrt(hidden_size): they are to be "
            "multiplied by it", ScaledDown),
    Mistake("scale doubled", "the embeddings are multiplied by hidden_size: its square root is meant", ScaledByWidth),
    Mistake("last norm forgotten", "your numbers are those without the norm behind the last layer", NoFinalNorm),
    Mistake("last norm in the loop", "the norm comes after every layer: it is to come once, at the end", NormInTheLoop),
    Mistake("only the last layer used", LAYERS[0].message, LastLayerOnly),
    Mistake("a layer left out", "your numbers are those without the last layer", SkipsLast),
    Mistake("cache not passed on", LOST, cache_lost(standins.GemmaModel)),
    Mistake("layers share a cache entry", "without a cache all is right; with one, all layers write to the same "
            "place: each layer needs its own layer_idx", SameIndex),
]  # fmt: skip


class ScaledLogits(standins.GemmaForCausalLM):
    def forward(self, *arguments, **named):
        result = super().forward(*arguments, **named)
        return {**result, "logits": result["logits"] * self.config.hidden_size**0.5}


class Probabilities(standins.GemmaForCausalLM):
    def forward(self, *arguments, **named):
        result = super().forward(*arguments, **named)
        return {**result, "logits": result["logits"].softmax(-1)}


HEADS = [
    Mistake("head scaled too", "the logits are multiplied by sqrt(hidden_size): the factor belongs to the embeddings "
            "alone", ScaledLogits),
    Mistake("cache not passed on", LOST, cache_lost(standins.GemmaForCausalLM)),
    Mistake("probabilities", "what comes back are probabilities: logits are asked for", Probabilities),
]  # fmt: skip


# The whole


class InParts(standins.PaliGemmaForConditionalGeneration):
    """The merge in the steps of the video, so that its values are known: text into zeros, then pictures."""

    def merged(self, embeddings, image_features, input_ids):
        is_image = (input_ids == self.config.image_token_index)[..., None]
        features = self.image_part(image_features)
        torch.zeros_like(embeddings).masked_scatter(is_image, features)
        return embeddings.masked_fill(is_image, 0.0).masked_scatter(is_image, features)


class ImageNotScaled(standins.PaliGemmaForConditionalGeneration):
    def image_part(self, image_features):
        return image_features


class ImageMultiplied(standins.PaliGemmaForConditionalGeneration):
    def image_part(self, image_features):
        return image_features * self.config.hidden_size**0.5


class ImageDividedByWidth(standins.PaliGemmaForConditionalGeneration):
    def image_part(self, image_features):
        return image_features / self.config.hidden_size


class Unmerged(standins.PaliGemmaForConditionalGeneration):
    def merged(self, embeddings, image_features, input_ids):
        return embeddings


class TextLost(standins.PaliGemmaForConditionalGeneration):
    def merged(self, embeddings, image_features, input_ids):
        return super().merged(torch.zeros_like(embeddings), image_features, input_ids)


class FromZero(standins.PaliGemmaForConditionalGeneration):
    def positions(self, attention_mask, length):
        return super().positions(attention_mask, length) - 1


class FromZeroLater(standins.PaliGemmaForConditionalGeneration):
    def positions(self, attention_mask, length):
        return super().positions(attention_mask, length) - (1 if length == 1 else 0)


class OneTooFar(standins.PaliGemmaForConditionalGeneration):
    def positions(self, attention_mask, length):
        return super().positions(attention_mask, length) + (1 if length == 1 else 0)


class SamePosition(standins.PaliGemmaForConditionalGeneration):
    def positions(self, attention_mask, length):
        return super().positions(attention_mask, length) if length > 1 else torch.ones_like(attention_mask[:, -1:])


class AllAtOne(standins.PaliGemmaForConditionalGeneration):
    def positions(self, attention_mask, length):
        return attention_mask[:, -length:].long()


class CausalPrompt(standins.PaliGemmaForConditionalGeneration):
    def forward(self, input_ids=None, pixel_values=None, attention_mask=None, kv_cache=None, labels=None):
        original, model = self.language_model.forward, self.language_model

        def causal(mask, positions, embeddings, cache):
            L, T = mask.shape[-2:]
            hidden = torch.ones(L, T).triu(T - L + 1).bool()
            return original(mask.masked_fill(hidden, torch.finfo(mask.dtype).min), positions, embeddings, cache)

        model.forward = causal
        try:
            return super().forward(input_ids, pixel_values, attention_mask, kv_cache)
        finally:
            del model.forward


MERGES = [
    Mistake("picture not divided", "your numbers are those without the division of the image features by "
            "sqrt(hidden_size): the decoder multiplies everything by it, and pictures are to stay as they are",
            ImageNotScaled),
    Mistake("picture multiplied", "the image features are multiplied by sqrt(hidden_size) instead of divided",
            ImageMultiplied),
    Mistake("picture divided twice", "the image features are divided by hidden_size: its square root is meant",
            ImageDividedByWidth),
    Mistake("picture never arrives", "your numbers are those without the picture: the embeddings of the <image> tokens "
            "themselves go into the decoder, not the merged ones", Unmerged),
    Mistake("text lost", "your numbers are those with zeros in place of the text", TextLost),
    Mistake("positions from 0", "the positions count from 0: here they count from 1", FromZero),
    Mistake("position of the new token", "the prompt is right; each new token sits one position too early",
            FromZeroLater),
    Mistake("position of the new token", "the prompt is right; each new token sits one position too far", OneTooFar),
    Mistake("position of the new token", "the prompt is right; each new token sits at position 1", SamePosition),
    Mistake("one position for all", "every token sits at position 1: the positions are the mask's running sum",
            AllAtOne),
    Mistake("causal prompt", "later tokens of the prompt are hidden: picture and prompt see each other in PaliGemma",
            CausalPrompt),
]  # fmt: skip
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
             ("10.2",), fit=maker.fits("PaliGemmaMultiModalProjector", gemma.PaliGemmaMultiModalProjector, sizes)),
        Part(name, "10", right, [Case((prompt, image, sizes), note="a prompt, then two more tokens with the cache")],
             run, mistakes=MERGES, fit=maker.fits(name, right, sizes), variants=(InParts,), tolerance=1e-4,
             uses=("SiglipVisionModel", "PaliGemmaMultiModalProjector", "GemmaForCausalLM", "KVCache"),
             places={"picture not divided": r"^\s*\w+ = image_features\s*$|masked_scatter",
                     "positions from 0": POSITIONS, "position of the new token": POSITIONS,
                     "one position for all": POSITIONS, "causal prompt": "mask"}),
        Part("sample_top_p", "11", standins.sample_top_p, [Case((probs, 0.6)), Case((probs, 0.95))], draw,
             tolerance=0.05, places={"crossing token dropped": "> *p|>= *p|> *top_p"}, mistakes=[
                 Mistake("crossing token dropped", "the token that brings the sum over p is left out: it belongs in",
                         lambda probs, p: drop_crossing(probs, p)),
                 Mistake("order not undone", "what comes back is a place in the sorted order: it has to be looked up "
                         "among the tokens", lambda probs, p: sorted_places(probs, p)),
                 Mistake("nothing dropped", "unlikely tokens are drawn, too",
                         lambda probs, p: torch.multinomial(probs, num_samples=1)),
             ]),
    ]  # fmt: skip


def drop_crossing(probs, p):
    ordered, places = probs.sort(dim=-1, descending=True)
    kept = ordered.masked_fill(ordered.cumsum(-1) > p, 0.0)
    return places.gather(-1, torch.multinomial(kept, num_samples=1))


def sorted_places(probs, p):
    ordered, _ = probs.sort(dim=-1, descending=True)
    return torch.multinomial(ordered.masked_fill(ordered.cumsum(-1) - ordered > p, 0.0), num_samples=1)


def line_of_pattern(pattern: str, lines: list[str], first: int) -> int | None:
    """The first line that matches, counted from `first`."""
    return next((first + i for i, line in enumerate(lines) if re.search(pattern, line.split("#")[0])), None)
