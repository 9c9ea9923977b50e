"""Chapter 15: published weights, a strict loader, and what Gemma 2 changed."""

import functools
import json
import math
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from .. import ASSETS
from ..checkpoint import canonical_name as package_name
from ..generation import generate
from ..modeling_gemma import (
    GemmaRotaryEmbedding,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    additive_mask,
    make_attn_mask,
)
from ..modeling_gemma2 import Gemma2Config, Gemma2DecoderLayer
from . import watching
from .checking import explain_error
from .exposing import exposing_task
from .tasks import Case, Finding, Mistake, Task, faults_left, larger, numbers

# --- 15.1 --------------------------------------------------------------------------------------------------------

VISION, LANGUAGE, PROJECTOR = "vision_tower.vision_model.", "language_model.model.", "multi_modal_projector."


def canonical_name(name):
    """By parts of the name, and not by a table."""
    inner = name.removeprefix("model.")
    for part, published in (("vision_tower.", VISION), ("multi_modal_projector.", PROJECTOR)):
        if inner.startswith(part):
            return published + inner.removeprefix(part).removeprefix("vision_model.")
    if name.startswith("model.language_model."):
        return LANGUAGE + name.removeprefix("model.language_model.")
    return name


def by_table(*prefixes):
    """The first prefix that fits is replaced."""

    def function(name):
        for prefix, published in prefixes:
            if name.startswith(prefix):
                return published + name[len(prefix) :]
        return name

    return function


KEPT = ((VISION, VISION), (LANGUAGE, LANGUAGE), (PROJECTOR, PROJECTOR))
SAVED = ("vision_tower.", VISION)
MEMORY = (("model.vision_tower.vision_model.", VISION), ("model.vision_tower.", VISION))
REST = (("model.language_model.", LANGUAGE), ("model.multi_modal_projector.", PROJECTOR))


def without_dots(some):
    """These prefixes are compared without the dot at their end."""
    table = [
        (p.rstrip("."), to.rstrip(".")) if (p, to) in some else (p, to) for p, to in (*KEPT, *MEMORY, SAVED, *REST)
    ]
    return by_table(*table)


def wherever(*prefixes):
    """The first prefix that is found is replaced, wherever it stands."""

    def function(name):
        for prefix, published in prefixes:
            if prefix in name:
                return name.replace(prefix, published)
        return name

    return function


def cut_off_by_letters(name):
    """`lstrip` takes a set of letters."""
    if not name.startswith(("model.vision_tower.", "model.language_model.", "model.multi_modal_projector.")):
        return canonical_name(name)
    rest = name.lstrip("model.")
    if rest.startswith("vision_tower.") and not rest.startswith(VISION):
        return VISION + rest.removeprefix("vision_tower.")
    return rest


def name_cases(seed):
    i, j = 3 * seed, 3 * seed + 1
    for layout, names in {
        "published": (
            f"{VISION}encoder.layers.{i}.self_attn.q_proj.weight",
            f"{LANGUAGE}layers.{j}.mlp.up_proj.weight",
            f"{LANGUAGE}embed_tokens.weight",
            f"{PROJECTOR}linear.bias",
        ),
        "transformers 5, saved": (
            f"vision_tower.encoder.layers.{j}.mlp.fc1.bias",
            "vision_tower.post_layernorm.weight",
        ),
        "transformers 4.52, in memory": (
            f"model.vision_tower.vision_model.encoder.layers.{i}.layer_norm1.weight",
            f"model.language_model.layers.{i}.self_attn.o_proj.weight",
            "model.multi_modal_projector.linear.weight",
        ),
        "transformers 5, in memory": (
            "model.vision_tower.embeddings.patch_embedding.weight",
            f"model.vision_tower.encoder.layers.{i}.layer_norm2.bias",
            "model.language_model.norm.weight",
        ),
        "not one of the four": (
            "lm_head.weight",
            f"model.adapter.{i}.weight",
            f"adapter.{i}.model.vision_tower.weight",
            f"vision_towers.{i}.weight",
            f"model.language_models.{i}.weight",
        ),
    }.items():
        for name in names:
            yield Case((name,), note=f"layout: {layout}")


def unknown_changed(case, got, want) -> Finding | None:
    (name,) = case.inputs
    if want != name or not isinstance(got, str) or name.startswith((VISION, LANGUAGE, PROJECTOR)):
        return None
    done = "`model.` is cut off" if got == name.removeprefix("model.") else "something is changed in"
    means = f"{done} a name that is in none of the four layouts: such a name comes back as it is"
    return Finding("unknown names changed", f"{got!r}\nexpected {want!r}", means)


def show_names(thing):
    """One tensor in all four layouts."""
    for prefix in (VISION, "vision_tower.", "model." + VISION, "model.vision_tower."):
        name = prefix + "post_layernorm.bias"
        print(f"  {name:52} {thing(name)}")


NAMES = Task(
    id="15.1",
    title="four layouts, one name",
    points=2,
    minutes=8,
    level="easy",
    importance="deepen",
    reference=canonical_name,
    cases=name_cases,
    gradients=False,
    see='chapter 15, "By hand"; the hints of this task',
    symptoms=[unknown_changed],
    reward=show_names,
    mistakes=[
        Mistake("prefixes in the wrong order", "`vision_model.` stands twice: a shorter prefix was tried before the "
                "longer one that begins with it, or a second rule was applied to the result of the first",
                by_table(SAVED, *KEPT, *MEMORY, *REST)),
        Mistake("prefixes in the wrong order", "`vision_model.` stands twice: a shorter prefix was tried before the "
                "longer one that begins with it", by_table(*KEPT, SAVED, *MEMORY[::-1], *REST)),
        Mistake("prefixes in the wrong order", "`vision_model.` stands twice: shorter prefixes were tried before the "
                "longer ones that begin with them", by_table(SAVED, *MEMORY[::-1], *KEPT, *REST)),
        Mistake("layout missing", "names as transformers 5 saves them are not translated", by_table(
            *KEPT, *MEMORY, *REST)),
        Mistake("layout missing", "names as transformers 5 has them in memory are not translated", by_table(
            *KEPT, SAVED, MEMORY[0], *REST)),
        Mistake("layout missing", "names of transformers in memory, with `model.` in front, are not translated",
                by_table(*KEPT, SAVED)),
        Mistake("layout missing", "the projector's name in memory is not translated", by_table(
            *KEPT, SAVED, *MEMORY, REST[0])),
        Mistake("layout missing", "the decoder's names in memory are not translated", by_table(
            *KEPT, SAVED, *MEMORY, REST[1])),
        Mistake("only model. cut off", "`model.` in front is cut off, and nothing else done: the decoder's own "
                "`model.` and the encoder's `vision_model.` belong into the name",
                lambda name: name.removeprefix("model.")),
        Mistake("decoder's model. lost", "in the published layout the decoder's names go on with `model.`, as in "
                "language_model.model.layers", by_table(*KEPT, SAVED, *MEMORY, ("model.language_model.",
                                                        "language_model."), REST[1])),
        Mistake("replaced anywhere", "`model.` is taken out wherever it stands, in the middle of `language_model.` and "
                "`vision_model.` too: a prefix is at the beginning", lambda name: name.replace("model.", "")),
        Mistake("replaced anywhere", "the first `model.` is taken out wherever it stands, in the middle of "
                "`language_model.` too: a prefix is at the beginning", lambda name: name.replace("model.", "", 1)),
        Mistake("published names changed", "the decoder's `model.` stands twice: a published name is to come back as "
                "it "
                "is", [by_table(*MEMORY, KEPT[0], SAVED, *REST, ("language_model.", LANGUAGE)),
                       by_table(*KEPT[::2], SAVED, *MEMORY, *REST, ("language_model.", LANGUAGE))]),
        Mistake("replaced anywhere", "a prefix is replaced in the middle of a name as well: it is at the beginning",
                [wherever(*KEPT, *MEMORY, SAVED, *REST), wherever(*MEMORY, *REST, *KEPT, SAVED)]),
        Mistake("unknown names changed", "`model.` is cut off names that are in none of the four layouts: they come "
                "back "
                "as they are", lambda name: by_table(*KEPT, SAVED, *MEMORY, *REST, ("model.", ""))(name)),
        Mistake("letters cut off", "`lstrip` cuts off all letters of a set, and not a prefix: `removeprefix`, or a "
                "slice, "
                "does", cut_off_by_letters),
        Mistake("dot left out", "a name that only begins like one of the prefixes is changed: the dot belongs to the "
                "prefix", [without_dots(some) for some in ((*MEMORY, SAVED, *REST), (SAVED,), REST[:1])]),
    ],
)  # fmt: skip

# --- 15.2 --------------------------------------------------------------------------------------------------------


def fits(expected, found):
    """Whether a file fits a model: the same names, with the same shapes."""
    return expected.keys() == found.keys() and all(tuple(expected[name]) == tuple(found[name]) for name in expected)


def looks_for_its_own(expected, found):
    return all(name in found and found[name] == expected[name] for name in expected)


def looks_at_the_file(expected, found):
    return all(name in expected and found[name] == expected[name] for name in found)


def compares_axes(expected, found):
    return expected.keys() == found.keys() and all(len(expected[name]) == len(found[name]) for name in expected)


def compares_sizes(expected, found):
    return expected.keys() == found.keys() and all(
        math.prod(expected[name]) == math.prod(found[name]) for name in expected
    )


def compares_in_order(expected, found):
    return list(expected.values()) == list(found.values())


LOADERS = {
    "A": looks_for_its_own,
    "B": looks_at_the_file,
    "C": compares_axes,
    "D": compares_sizes,
    "E": compares_in_order,
}


def expose_loaders():
    return {
        "A": ({"norm": (4,)}, {"norm": (4,), "bias": (1,)}),
        "B": ({"norm": (4,), "bias": (1,)}, {"norm": (4,)}),
        "C": ({"head": (4, 3)}, {"head": (4, 2)}),
        "D": ({"head": (4, 3)}, {"head": (12,)}),
        "E": ({"norm": (4,)}, {"bias": (4,)}),
    }


def usable_tensors(expected, found):
    for tensors in (expected, found):
        if not isinstance(tensors, dict) or not tensors:
            return "both are to be dicts from a name to a shape, with at least one name"
        for name, shape in tensors.items():
            good = isinstance(shape, tuple) and all(isinstance(size, int) and size > 0 for size in shape)
            if not isinstance(name, str) or not good:
                return f"{name!r}: {shape!r} is not a name with a shape, a tuple of whole numbers above 0"
    return None


def show_loaders(expose):
    """What each loader would have let through."""
    for name, (expected, found) in expose().items():
        says = "fits" if LOADERS[name](expected, found) else "does not fit"
        right = "fits" if fits(expected, found) else "does not fit"
        print(f"  {name}  expected {expected}, found {found}: {right}, and {name} says it {says}")


STRICT = exposing_task(
    "15.2",
    right=fits,
    wrong=LOADERS,
    reference=expose_loaders,
    usable=usable_tensors,
    title="five careless loaders",
    points=3,
    minutes=10,
    level="medium",
    importance="core",
    see='chapter 15, "A loader in twenty lines"; the hints of this task',
    reward=show_loaders,
)

# --- 15.3 --------------------------------------------------------------------------------------------------------


def capped_attention(query, key, value, allowed, scale, cap=None):
    scores = torch.einsum("bhld,bhtd->bhlt", query, key) * scale
    if cap is not None:
        scores = (scores / cap).tanh() * cap
    weights = scores.float().masked_fill(~allowed, -torch.inf).softmax(dim=-1).to(query.dtype)
    return torch.einsum("bhlt,bhtd->bhld", weights, value)


def bend(x, cap):
    return x if cap is None else cap * torch.tanh(x / cap)


def attending(score=lambda s, scale, cap, allowed: bend(s * scale, cap).masked_fill(~allowed, -1e30), axis=-1,
              after=lambda w, cap: w):  # fmt: skip
    """`capped_attention` with one step done differently."""

    def function(query, key, value, allowed, scale, cap=None):
        scores = score((query @ key.transpose(-1, -2)).float(), scale, cap, allowed)
        weights = after(scores.float().softmax(dim=axis), cap).to(query.dtype)
        return weights @ value

    return function


def masked(s, allowed, low=-1e30):
    return s.masked_fill(~allowed, low)


def hidden_afterwards(query, key, value, allowed, scale, cap=None):
    weights = bend(query.float() @ key.float().transpose(-1, -2) * scale, cap).softmax(-1)
    return weights.masked_fill(~allowed, 0.0).to(query.dtype) @ value


def attention_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "H": 3, "L": 5, "T": 7 + k, "d": 4}
    allowed = torch.arange(7 + k) <= torch.arange(5)[:, None] + 2
    allowed = allowed.expand(2, 1, 5, 7 + k).clone()
    allowed[1, :, :, 0] = False  # padding in the second row

    def parts(dtype=torch.float32, scale=1.0):
        shapes = ((2, 3, 5, 4), (2, 3, 7 + k, 4), (2, 3, 7 + k, 4))
        return tuple(numbers(seed + 40 * i, *shape, dtype=dtype, scale=scale) for i, shape in enumerate(shapes))

    yield Case((*parts(scale=2.0), allowed, 0.4, 2.0), sizes=sizes, note="a cap of 2")
    yield Case((*parts(scale=1.5), allowed, 0.7, 5.0), sizes=sizes, note="a cap of 5")
    yield Case((*parts(), allowed, 0.5, None), sizes=sizes, note="no cap")
    yield Case((*parts(torch.bfloat16), allowed, 0.5, 3.0), sizes=sizes, note="bfloat16")


def half_precision_works(thing) -> Finding | None:
    """float16 holds nothing below -65504. Here and not among the cases, where it would hide other mistakes."""
    query, key, value, allowed, scale, cap = next(iter(attention_cases(0))).inputs
    inputs = [x.to(torch.float16) for x in (query, key, value)]
    try:
        got = thing(*inputs, allowed, scale, cap)
    except RuntimeError as error:
        finding = explain_error(error)
        return Finding(finding.name, f"with float16: {finding.observed}", finding.explanation)
    gap = float((got.float() - capped_attention(*inputs, allowed, scale, cap).float()).abs().max())
    if gap < 0.05:
        return None
    return Finding("half precision", f"with float16 your result is off by {gap:.2g}", "")


def show_capped(thing):
    query, key = torch.ones(1, 1, 1, 1) * 10, torch.tensor([1.0, 2.0, 4.0, 9.0]).view(1, 1, 4, 1)
    allowed = torch.tensor([True, True, True, False]).view(1, 1, 1, 4)
    for cap in (None, 50.0, 5.0, 1.0):
        weights = thing(query, key, torch.eye(4).view(1, 1, 4, 4), allowed, 0.1, cap)[0, 0, 0].tolist()
        row = "  ".join(f"{weight:.2f}" for weight in weights)
        print(f"  scores 1, 2, 4 and 9 (hidden), cap {str(cap):5}  weights {row}")
    print("  A cap of 50 is far above these scores and bends nearly nothing. Minus infinity, capped, would be -cap.")


CAPPED = Task(
    id="15.3",
    title="soft-capped attention",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    reference=capped_attention,
    cases=attention_cases,
    see='chapter 15, "What Gemma 2 changed"; the hints of this task',
    reward=show_capped,
    extra=[half_precision_works],
    mistakes=[
        Mistake("cap after the mask", "hidden tokens get a weight: the cap bends even the mask's huge negative numbers "
                "into its range", attending(lambda s, scale, cap, ok: bend(masked(s * scale, ok), cap))),
        Mistake("not divided by the cap", "your numbers are those of cap · tanh(x): small scores are to pass nearly "
                "unchanged, and so are multiplied by the cap", attending(lambda s, scale, cap, ok: masked(
                    s * scale if cap is None else cap * torch.tanh(s * scale), ok))),
        Mistake("not multiplied by the cap", "your numbers are those of tanh(x / cap): all scores end between -1 and 1",
                attending(lambda s, scale, cap, ok: masked(
                    s * scale if cap is None else torch.tanh(s * scale / cap), ok))),
        Mistake("cap upside down", "your numbers are those of tanh(x · cap) / cap", attending(
            lambda s, scale, cap, ok: masked(s * scale if cap is None else torch.tanh(s * scale * cap) / cap, ok))),
        Mistake("cap before the scaling", "the scores are capped first and scaled after", attending(
            lambda s, scale, cap, ok: masked(bend(s, cap) * scale, ok))),
        Mistake("cap after the softmax", "the weights are capped, and not the scores", attending(
            lambda s, scale, cap, ok: masked(s * scale, ok), after=bend)),
        Mistake("cap forgotten", "your numbers are those without a cap", attending(
            lambda s, scale, cap, ok: masked(s * scale, ok))),
        Mistake("cut instead of bent", "the scores are cut off at the cap: it is to bend them, so that their order is "
                "kept", attending(lambda s, scale, cap, ok: masked(
                    s * scale if cap is None else (s * scale).clamp(-cap, cap), ok))),
        Mistake("scale forgotten", "your numbers are those without the scale", attending(
            lambda s, scale, cap, ok: masked(bend(s, cap), ok))),
        Mistake("divided by the scale", "the scores are divided by the scale", attending(
            lambda s, scale, cap, ok: masked(bend(s / scale, cap), ok))),
        Mistake("head size instead of the scale", "the scores are divided by the square root of the head size: the "
                "scale is given, and in Gemma 2 it need not be that", attending(
                    lambda s, scale, cap, ok: masked(bend(s * 4**-0.5, cap), ok))),
        Mistake("mask upside down", "the tokens that may not be seen are seen, and the others hidden", attending(
            lambda s, scale, cap, ok: masked(bend(s * scale, cap), ~ok))),
        Mistake("mask forgotten", "your numbers are those without the mask", attending(
            lambda s, scale, cap, ok: bend(s * scale, cap))),
        Mistake("hidden scores set to zero", "hidden scores are set to 0: that is a score like others", attending(
            lambda s, scale, cap, ok: masked(bend(s * scale, cap), ok, 0.0))),
        Mistake("softmax over the wrong axis", "the softmax runs over the queries: the weights of one query are to sum "
                "to 1", attending(axis=-2)),
        Mistake("cap fixed", "the cap is 50 whatever is given", attending(lambda s, scale, cap, ok: masked(
            bend(s * scale, None if cap is None else 50.0), ok))),
        Mistake("cap fixed", "the cap is 50 whatever is given, where none is given, too", attending(
            lambda s, scale, cap, ok: masked(bend(s * scale, 50.0), ok))),
        Mistake("no cap not allowed for", "without a cap (`cap=None`) nothing is to be bent", [
            attending(lambda s, scale, cap, ok: masked(cap * torch.tanh(s * scale / cap), ok)),
            attending(lambda s, scale, cap, ok: masked(torch.tanh(s * scale / cap) * cap, ok))]),
        Mistake("mask not low enough", "hidden tokens keep a little weight: the number in place of their scores is "
                "not low "
                "enough", [attending(lambda s, scale, cap, ok, low=low: masked(bend(s * scale, cap), ok, low))
                           for low in (-1.0, -5.0, -10.0)]),
        Mistake("hidden after the softmax", "hidden weights are set to 0 after the softmax: what is left of a row "
                "does not "
                "sum to 1", hidden_afterwards),
    ],
)  # fmt: skip

# --- 15.4 --------------------------------------------------------------------------------------------------------


class Layer(Gemma2DecoderLayer):
    """The reference in steps, for the imitations. No cache here."""

    faults = ()

    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        x = hidden_states
        attended, _ = self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)
        if "outside" in self.faults:
            x = self.post_attention_layernorm(x + attended)
        else:
            x = x + self.post_attention_layernorm(attended)
        before, after = self.pre_feedforward_layernorm, self.post_feedforward_layernorm
        if "swapped" in self.faults:
            before, after = after, before
        normed = before(x)
        return (normed if "residual" in self.faults else x) + after(self.mlp(normed))


class Gemma1Layer(Layer):
    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        x = hidden_states
        x = x + self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)[0]
        return x + self.mlp(self.post_attention_layernorm(x))


class Gemma1Place(Layer):
    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        x = hidden_states
        x = x + self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)[0]
        return x + self.post_feedforward_layernorm(self.mlp(self.post_attention_layernorm(x)))


class AfterForgotten(Layer):
    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        x = hidden_states
        attended, _ = self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)
        x = x + self.post_attention_layernorm(attended)
        return x + self.mlp(self.pre_feedforward_layernorm(x))


class BeforeForgotten(Layer):
    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        x = hidden_states
        attended, _ = self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)
        x = x + self.post_attention_layernorm(attended)
        return x + self.post_feedforward_layernorm(self.mlp(x))


class AfterOutside(Layer):
    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        x = hidden_states
        attended, _ = self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)
        x = x + self.post_attention_layernorm(attended)
        return self.post_feedforward_layernorm(x + self.mlp(self.pre_feedforward_layernorm(x)))


class AttentionAsItIs(Layer):
    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        x = hidden_states
        x = x + self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)[0]
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class RawStream(Layer):
    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        x = hidden_states
        x = x + self.post_attention_layernorm(self.self_attn(x, position_embeddings, attention_mask)[0])
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class MaskLost(Layer):
    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        return super().forward(hidden_states, position_embeddings)


class AttentionLost(Layer):
    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        x = hidden_states
        attended, _ = self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)
        h = x + self.post_attention_layernorm(attended)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(h)))


class ResidualForgotten(Layer):
    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        x = hidden_states
        attended, _ = self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)
        x = x + self.post_attention_layernorm(attended)
        return self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


FAULTS = {  # what can be observed of each, and its name
    "outside": (
        "the norm on the attention's output normalises the sum: the residual itself must pass untouched",
        "norm outside the residual",
    ),
    "residual": (
        "the second residual is taken from the normalised vector: it is to pass by both norms",
        "residual from the norm",
    ),
    "swapped": (
        "the two norms around the MLP have changed places: one comes before it and one after, as they are named",
        "norms swapped",
    ),
}


def layer_cases(seed):
    k = larger(seed)
    config = Gemma2Config(
        hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=6, vocab_size=11, query_pre_attn_scalar=9, attn_logit_softcapping=3.0,
    )  # fmt: skip
    angles = GemmaRotaryEmbedding(6)
    for B, L, shift, note in ((2, 5 + k, 0.0, ""), (3, 4, 1.0, "about 1 on average")):
        x = numbers(seed, B, L, 12, scale=2.0, shift=shift)
        types = torch.ones(B, L, dtype=torch.long)
        mask = additive_mask(make_attn_mask(types, types), torch.float32)
        yield Case((x, angles(x, torch.arange(L).expand(B, L)), mask), (config, 0), {"B": B, "L": L, "D": 12}, note)


def show_layer(thing):
    config = layer_cases(0).__next__().init[0]
    torch.manual_seed(0)
    layer = thing(config, 0)
    print(f"  a decoder layer of Gemma 2 with {sum(p.numel() for p in layer.parameters()):,} parameters; its norms:")
    for name, _ in layer.named_parameters():
        if "layernorm" in name:
            print(f"    {name}")


LAYER = Task(
    id="15.4",
    title="find the norms in the wrong place",
    points=3,
    minutes=12,
    level="medium",
    importance="deepen",
    from_memory=True,
    reference=Layer,
    cases=layer_cases,
    see='chapter 15, "What Gemma 2 changed", the table of norms',
    reward=show_layer,
    mistakes=[
        *faults_left(FAULTS, lambda some: type("Suspect", (Layer,), {"faults": some})),
        Mistake("Gemma 1's layer", "this is a layer of Gemma 1: two of the four norms are not used, and "
                "post_attention_layernorm stands before the MLP", Gemma1Layer),
        Mistake("post_attention_layernorm before the MLP", "post_attention_layernorm stands where Gemma 1 has it: in "
                "Gemma 2 it normalises what attention gives, before that is added", Gemma1Place),
        Mistake("norm forgotten", "the norm after the MLP is not used", AfterForgotten),
        Mistake("norm forgotten", "the norm before the MLP is not used", BeforeForgotten),
        Mistake("norm outside the residual", "the last norm normalises the sum: the residual must pass untouched",
                AfterOutside),
        Mistake("norm forgotten", "the norm on what attention gives is not used", AttentionAsItIs),
        Mistake("norm forgotten", "attention reads the stream as it is: the norm before it is not used", RawStream),
        Mistake("mask lost", "the mask does not reach the attention", MaskLost),
        Mistake("attention lost", "the second sum begins with what came into the layer: what attention added is lost",
                AttentionLost),
        Mistake("residual forgotten", "the MLP's output replaces what was there: it is to be added", ResidualForgotten),
    ],
)  # fmt: skip

# --- 15.5 --------------------------------------------------------------------------------------------------------


def window_mask(is_answer, window):
    B, L = is_answer.shape
    allowed = torch.zeros(B, L, L, dtype=torch.bool)
    for b in range(B):
        for q in range(L):
            for k in range(L):
                prefix = not is_answer[b, q] and not is_answer[b, k]
                allowed[b, q, k] = prefix or (k <= q and q - k < window)
    return allowed


def windowing(rule):
    """A mask by a rule of (query's place, key's place, query is answer, key is answer, window)."""

    def function(is_answer, window):
        place = torch.arange(is_answer.shape[1])
        q, k = place[:, None], place[None, :]
        return rule(q, k, is_answer[:, :, None], is_answer[:, None, :], window).expand(-1, len(place), -1)

    return function


def window_cases(seed):
    k = larger(seed)
    place, first = torch.arange(9 + k), seed % 2
    sizes = {"B": 2, "L": 9 + k}
    types = place >= torch.tensor([[4 + first], [5]])
    for window in (2, 3, 4 + k):
        yield Case((types, window), sizes=sizes, note=f"window of {window}")
    yield Case((types, 100), sizes=sizes, note="a window longer than the text")
    yield Case((place[None, :7] >= 6 - first, 1), sizes={"L": 7}, note="window of 1")


def show_window(thing):
    mask = thing(torch.arange(9)[None] >= 5, 3)[0]
    print("  five of picture and prompt, four of the answer, a window of 3:")
    for row in mask.tolist():
        print("    " + " ".join("■" if seen else "·" for seen in row))


WINDOW = Task(
    id="15.5",
    title="windows",
    points=2,
    minutes=10,
    level="medium",
    importance="deepen",
    reference=window_mask,
    cases=window_cases,
    gradients=False,
    see='chapter 15, "What Gemma 2 changed", three; the hints of this task',
    reward=show_window,
    mistakes=[
        Mistake("window off by one", "a token of the answer sees one token too many: with a window of 3 it sees itself "
                "and the two before it", windowing(lambda q, k, qa, ka, w: ~(qa | ka) | ((k <= q) & (q - k <= w)))),
        Mistake("window off by one", "a token of the answer sees one token too few: with a window of 3 it sees itself "
                "and the two before it", windowing(lambda q, k, qa, ka, w: ~(qa | ka) | ((k <= q) & (q - k < w - 1)))),
        Mistake("window over picture and prompt", "picture and prompt see only what is near: they are one block and "
                "see each other whole", windowing(lambda q, k, qa, ka, w: (~(qa | ka) | (k <= q)) & (q - k < w))),
        Mistake("window over picture and prompt", "picture and prompt see only what is near, on both sides: they are "
                "one block and see each other whole",
                windowing(lambda q, k, qa, ka, w: (~(qa | ka) | (k <= q)) & ((q - k).abs() < w))),
        Mistake("causal", "picture and prompt are read in order: they are one block and see each other whole",
                windowing(lambda q, k, qa, ka, w: ((k <= q) & (q - k < w)).expand(len(qa), -1, -1))),
        Mistake("window forgotten", "the answer sees everything before it: that is the mask of the other layers",
                windowing(lambda q, k, qa, ka, w: ~(qa | ka) | (k <= q))),
        Mistake("window in the answer only", "the answer sees the whole of picture and prompt: the window holds for "
                "all that is read in order, however important",
                windowing(lambda q, k, qa, ka, w: ~ka | ((k <= q) & (q - k < w)))),
        Mistake("future seen", "a token of the answer sees what comes after it", [
            windowing(lambda q, k, qa, ka, w: ~(qa | ka) | ((q - k).abs() < w)),
            windowing(lambda q, k, qa, ka, w: ~(qa | ka) | (qa & ((q - k).abs() < w)))]),
        Mistake("future seen", "a token of the answer sees what comes after it, however far", windowing(
            lambda q, k, qa, ka, w: ~(qa | ka) | (q - k < w))),
        Mistake("transposed", "rows and columns are swapped: the row is who looks, the column at whom", windowing(
            lambda q, k, qa, ka, w: ~(qa | ka) | ((q <= k) & (k - q < w)))),
        Mistake("future seen", "a token of picture and prompt sees the answer: it comes after them", [
            windowing(lambda q, k, qa, ka, w: ~qa | ((k <= q) & (q - k < w))),
            windowing(lambda q, k, qa, ka, w: ~qa | (~qa & ~ka) | ((k <= q) & (q - k < w)))]),
        Mistake("causal", "picture and prompt see only what comes before: they are one block and see each other whole",
                windowing(lambda q, k, qa, ka, w: (~(qa | ka) & (k <= q)) | (qa & (k <= q) & (q - k < w)))),
        Mistake("block missing", "picture and prompt see nothing at all: they see each other whole",
                windowing(lambda q, k, qa, ka, w: qa & (k <= q) & (q - k < w))),
        Mistake("row 0 for all", "every row of the batch has the mask of row 0: prompts have different lengths",
                lambda is_answer, window: window_mask(is_answer[:1].expand_as(is_answer), window)),
        Mistake("prompt out of the window", "the answer sees nothing of picture and prompt: where the window reaches "
                "back "
                "to them they are seen", windowing(
                    lambda q, k, qa, ka, w: ~(qa | ka) | (qa & ka & (k <= q) & (q - k < w)))),
        Mistake("not bool", "a mask of numbers comes back: True and False are asked for",
                lambda is_answer, window: torch.zeros(1).masked_fill(~window_mask(is_answer, window), -torch.inf)),
    ],
)  # fmt: skip

# --- 15.6 --------------------------------------------------------------------------------------------------------

SMALL = {
    "model_type": "paligemma",
    "image_token_index": 19,
    "projection_dim": 8,
    "hidden_size": 8,
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 4, "patch_size": 2, "vision_use_head": False,
    },
    "text_config": {
        "model_type": "gemma", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 20,
    },
}  # fmt: skip
BROKEN = ("a tensor is missing", "a tensor is too much", "a tensor has another shape")


@functools.cache
def small_folder(kind: str, seed: int) -> tempfile.TemporaryDirectory:
    """A checkpoint folder with a very small PaliGemma; removed when Python ends."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = PaliGemmaForConditionalGeneration(PaliGemmaConfig.from_dict(SMALL))
    torch.random.set_rng_state(state)
    weights = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    if kind == "written by transformers 5, with a head":
        weights["lm_head.weight"] = weights[LANGUAGE + "embed_tokens.weight"].clone()
        weights = {name.replace(VISION, "vision_tower."): tensor for name, tensor in weights.items()}
    if kind == BROKEN[0]:
        del weights[LANGUAGE + "norm.weight"]
    if kind == BROKEN[1]:
        weights[LANGUAGE + "layers.0.pre_feedforward_layernorm.weight"] = torch.zeros(8, dtype=torch.bfloat16)
    if kind == BROKEN[2]:
        weights[PROJECTOR + "linear.bias"] = torch.zeros(1, dtype=torch.bfloat16)
    folder = tempfile.TemporaryDirectory(prefix="paligemma-")
    (Path(folder.name) / "config.json").write_text(json.dumps(SMALL), encoding="utf-8")
    save_file(weights, Path(folder.name) / "model.safetensors")
    return folder


def open_folder(load, kind, seed):
    """What a loader makes of a folder: the weights, or whether it refuses a broken one."""
    folder = Path(small_folder(kind, seed).name)
    try:
        with warnings.catch_warnings():  # torch warns when numbers are copied to where there is no memory
            warnings.simplefilter("ignore")
            model = load(folder)
    except NotImplementedError as error:
        if "meta" in str(error):
            raise RuntimeError(str(error)) from error
        raise
    except (ValueError, RuntimeError, KeyError, AssertionError):
        if kind not in BROKEN:
            raise
        return "refused"
    if kind in BROKEN:
        return "opened"
    if not isinstance(model, torch.nn.Module):
        return model
    return {
        "weights": {name: tensor.detach() for name, tensor in model.named_parameters()},
        "in training mode": bool(model.training),
    }


def read_tensors(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def loading(meta=True, assign=True, strict=True, rename=True, skip_head=True, ready=True, only=None):
    """`load` with one step done differently."""

    def load(folder):
        config = PaliGemmaConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        with torch.device("meta" if meta else "cpu"):
            model = PaliGemmaForConditionalGeneration(config)
        weights = read_tensors(folder)
        if skip_head:
            weights.pop("lm_head.weight", None)
        if rename:
            weights = {package_name(name): tensor for name, tensor in weights.items()}
        expected = model.state_dict()
        if only == "known":
            weights = {name: tensor for name, tensor in weights.items() if name in expected}
        if only == "present" and [name for name in weights if name not in expected]:
            raise ValueError("unexpected tensors")
        model.load_state_dict(weights, assign=assign, strict=strict and only != "present")
        return model.eval() if ready else model

    return load


load = loading()


def folder_cases(seed):
    yield Case(("written by transformers 5, with a head", seed), note="names of transformers 5, bfloat16")
    if seed in (0, 11):  # one folder of each other kind is enough: opening takes time
        yield Case(("published", seed), note="names as published, bfloat16")
        for kind in BROKEN:
            yield Case((kind, seed), note="a broken folder")


class NumbersMade(TorchDispatchMode):
    """Counts the numbers that torch's operators have made in memory, by what the operators do."""

    KINDS = {name: "new" for name in ("empty", "zeros", "ones", "full", "rand", "randn", "normal_", "uniform_")}
    KINDS |= {name: "copied" for name in ("clone", "_to_copy", "copy_", "contiguous")}

    def __init__(self):
        super().__init__()
        self.made = {"new": 0, "copied": 0}

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        kind = self.KINDS.get(function.overloadpacket.__name__)
        if kind and isinstance(result, torch.Tensor) and not result.is_meta:
            self.made[kind] += result.numel()
        return result


def made_by(load) -> dict[str, int]:
    folder = Path(small_folder("published", 0).name)  # out here: writing it the first time makes numbers, too
    with NumbersMade() as counting, torch.no_grad():
        load(folder)
    return counting.made


def no_memory_of_its_own(thing) -> Finding | None:
    """The model is built without memory, and takes the tensors of the file as they are."""
    mine, theirs = made_by(thing), made_by(load)
    there = sum(tensor.numel() for tensor in read_tensors(Path(small_folder("published", 0).name)).values())
    for kind, name, text, means in (
        ("new", "built with memory", "were put into memory while the model was built",
         "build it on torch's meta device: otherwise there is a whole model in memory before the first tensor is read"),
        ("copied", "copied", "were copied", "the parameters are to be the tensors of the file themselves"),
    ):  # fmt: skip
        if mine[kind] - theirs[kind] > there / 2:
            return Finding(name, f"for a file of {there} numbers {mine[kind] - theirs[kind]} {text}", means)
    return None


def show_load(thing):
    """The trained model, opened by the learner's loader, captions three pictures."""
    if watching.trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so it cannot speak.")
        return
    _, processor = watching.trained()
    model = thing(ASSETS / "tiny-paligemma")
    images = [watching.picture(seed) for seed in (0, 1, 2)]
    captions = generate(model, processor, images=images, text=[watching.PROMPT] * len(images))
    watching.show_captions(images, captions, "The trained model, opened by your loader, says:")


LOAD = Task(
    id="15.6",
    title="your loader opens the trained model",
    points=4,
    minutes=15,
    level="hard",
    importance="core",
    reference=load,
    cases=folder_cases,
    use=open_folder,
    gradients=False,
    see='chapter 15, "A loader in twenty lines"; the hints of this task',
    reward=show_load,
    extra=[no_memory_of_its_own],
    mistakes=[
        Mistake("copied instead of assigned", "the parameters are not the tensors of the file: their dtype is that of "
                "the memory which the model had already (or they were cast), and for a moment both exist",
                loading(meta=False, assign=False)),
        Mistake("no memory", "the parameters are still without memory: numbers were copied to the meta device, which "
                "keeps none. The model is to take the tensors themselves", loading(assign=False)),
        Mistake("not strict", "broken folders are opened: with strict=False what is missing stays without memory, and "
                "what is unexpected is dropped without a word", loading(strict=False)),
        Mistake("unexpected not noticed", "a folder with a tensor that the model has no place for is opened",
                loading(only="known")),
        Mistake("missing not noticed", "a folder that lacks a tensor is opened", loading(only="present")),
        Mistake("names not translated", "names that transformers 5 wrote are not those of the model: bring each name "
                "to the published layout first", loading(rename=False)),
        Mistake("head not skipped", "a file may hold the head, which is the embedding table again: it is no surprise, "
                "and has no place of its own", loading(skip_head=False)),
        Mistake("left in training mode", "the model comes back in training mode", loading(ready=False)),
    ],
)  # fmt: skip

TASKS = [NAMES, STRICT, CAPPED, LAYER, WINDOW, LOAD]
