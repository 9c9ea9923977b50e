"""Chapter 09: the decoder."""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from .. import swap as swap_module
from ..kv_cache import KVCache
from ..modeling_gemma import (
    GemmaConfig,
    GemmaDecoderLayer,
    GemmaMLP,
    GemmaRotaryEmbedding,
    additive_mask,
    make_attn_mask,
)
from ..world.scenes import caption, draw, make_scene
from .checking import explain_error, with_weights
from .tasks import Case, Finding, Mistake, Prediction, Task, faults_left, larger, numbers
from .watching import PROMPT, captions_of, trained, words_kept

# --- 09.1 --------------------------------------------------------------------------------------------------------


def config_of(D, inner, eps=1e-6):
    return GemmaConfig(
        hidden_size=D, intermediate_size=inner, num_attention_heads=4, num_key_value_heads=2, head_dim=6,
        num_hidden_layers=2, rms_norm_eps=eps, attention="eager",
    )  # fmt: skip


def product_cases(seed):
    """(D, inner, a, b, out, tokens): which two features are to be multiplied, and where the product is to stand."""
    k = larger(seed)
    for D, inner, a, b, out, note in (
        (6 + k, 10, 1, 4, 2, "feature 1 times feature 4, into feature 2"),
        (5, 2, 3, 0, 3, "the product takes the place of feature 3"),
        (9, 7 + k, 6, 6, 8, "feature 6 times itself"),
    ):
        x = numbers(seed, 2, 5, D, scale=3.0)
        yield Case((D, inner, a, b, out, x), sizes={"B": 2, "L": 5, "D": D}, note=note)


ALL_THREE = ("gate_proj", "up_proj", "down_proj")


def multiplier(rows=((1.0, 1.0, 1.0), (-1.0, -1.0, 1.0)), clear=ALL_THREE, turned=False, factor=None, to=None):
    """Weights by hand. `rows`: for each row of the inner width the weights in gate, up and down."""

    def set_weights(mlp, a, b, out):
        with torch.no_grad():
            for name in clear:
                getattr(mlp, name).weight.zero_()
            for row, (gate, up, down) in enumerate(rows):
                mlp.gate_proj.weight[row, a] = gate
                mlp.up_proj.weight[row, a if factor == "a" else b] = up
                mlp.down_proj.weight[(a if turned else out) if to is None else to, row] = down

    return set_weights


def across(name):
    """The reference with one of the three weights written as [from, to]."""

    def set_weights(mlp, a, b, out):
        with torch.no_grad():
            for weight in mlp.parameters():
                weight.zero_()
            for row, sign in enumerate((1.0, -1.0)):
                for matrix, to, source, value in (
                    ("gate_proj", row, a, sign), ("up_proj", row, b, sign), ("down_proj", out, row, 1.0)
                ):  # fmt: skip
                    getattr(mlp, matrix).weight[(source, to) if matrix == name else (to, source)] = value

    return set_weights


def use_weights(set_weights, D, inner, a, b, out, x):
    """What a GemmaMLP with random weights makes of the tokens after its weights were set."""
    mlp = with_weights(GemmaMLP(config_of(D, inner)))
    set_weights(mlp, a, b, out)
    return GemmaMLP.forward(mlp, x)


def other_features(case, got, want) -> Finding | None:
    """Only row `out` of down_proj is to hold anything."""
    out = case.inputs[4]
    others = [feature for feature in range(got.shape[-1]) if feature != out]
    if got.shape != want.shape or not got[..., others].any():
        return None
    seen = f"features besides feature {out} are not 0: the largest is {float(got[..., others].abs().max()):.2g}"
    return Finding("old weights left", seen, "rows of `down_proj` besides `out` still hold weights: all weights of the "
                   "three matrices that the product does not need are to be 0")  # fmt: skip


def show_product(set_weights):
    mlp = GemmaMLP(config_of(6, 10))
    set_weights(mlp, 0, 1, 2)
    with torch.no_grad():
        for a, b in ((3.0, 4.0), (-3.0, 4.0), (-3.0, -4.0), (0.5, 0.5)):
            product = float(mlp(torch.tensor([[[a, b, 0.0, 0.0, 0.0, 0.0]]]))[0, 0, 2])
            print(f"  {a:4} times {b:4} is {product:.4f}")
    print("  A token's features were multiplied with each other: a linear map alone cannot do that.")


PRODUCT = Task(
    id="09.1",
    title="a multiplier, set by hand",
    points=3,
    minutes=12,
    level="medium",
    importance="deepen",
    reference=multiplier(),
    cases=product_cases,
    use=use_weights,
    gradients=False,
    tolerance=1e-4,
    see='chapter 09, "By hand" and "GemmaMLP"; the hints of this task',
    symptoms=[other_features],
    reward=show_product,
    prediction=Prediction(
        "With one row instead of two (gate reads a, up reads b), the product is right for how many of these four: "
        "(3, 4), (3, -4), (-3, 4), (-3, -4)?",
        truth=2,
        tempting=4,
        why="GELU leaves a gate of 3 nearly as it is and brings -3 close to 0: both products with a = -3 are lost, "
        "whatever b is. The second row, with both signs turned, lets them through.",
    ),
    mistakes=[
        Mistake(
            "one side only",
            "products are right where feature a is positive and about 0 where it is negative: GELU shuts a gate that "
            "is negative. The other sign needs a row of its own",
            [multiplier(rows=((1.0, 1.0, 1.0),)), multiplier(rows=((10.0, 1.0, 0.1),)),
             multiplier(rows=((100.0, 1.0, 0.01),))],
        ),
        Mistake(
            "other side only",
            "products are right where feature a is negative and about 0 where it is positive",
            multiplier(rows=((-1.0, -1.0, 1.0),)),
        ),
        Mistake(
            "a sign is not turned",
            "you get the size of a times b: where a is negative the product has the wrong sign. In the row for "
            "negative a the gate is turned round; one more sign of that row, and only one, has to turn it back",
            [multiplier(rows=((1.0, 1.0, 1.0), (-1.0, 1.0, 1.0))),
             multiplier(rows=((1.0, 1.0, 1.0), (-1.0, -1.0, -1.0)))],
        ),
        Mistake("the same row twice", "both rows have the same weights: products with a positive a come out doubled, "
                "those with a negative one are lost", multiplier(rows=((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)))),
        Mistake("old weights left", "the product is there, and what the other weights make is added: set all others "
                "to 0", multiplier(clear=())),
        Mistake("product in another place", "the product stands at feature a: `down_proj` decides where it goes",
                multiplier(turned=True)),
        Mistake("feature a with itself", "`up_proj` reads feature a, too: that is its square, not the product",
                multiplier(factor="a")),
        Mistake("twice the product", "the product comes out doubled", multiplier(
            rows=((1.0, 1.0, 2.0), (-1.0, -1.0, 2.0)))),
        Mistake("nothing set", "the weights are as they were", lambda mlp, a, b, out: None),
        Mistake("old weights left", "a part of the old weights is left beside yours, in a matrix that was not set to "
                "0: "
                "what is not yours is to be 0 in all three",
                [multiplier(clear=some) for some in (("gate_proj",), ("up_proj",), ("down_proj",), ALL_THREE[:2],
                                                     ALL_THREE[1:], ALL_THREE[::2])]),
        *(Mistake("the wrong way round", f"`{name}.weight` is written the wrong way round: it is [to, from]",
                  across(name)) for name in ALL_THREE),
        Mistake("product in another place", "the product stands at feature 0, whatever `out` is", multiplier(to=0)),
    ],
)  # fmt: skip

# --- 09.2 --------------------------------------------------------------------------------------------------------


def layer_cases(seed):
    k = larger(seed)
    sizes = {"B": 3, "L": 5, "D": 14, "inner": 20}
    real = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    x = numbers(seed, 3, 5, 14, scale=2.0)
    rope = GemmaRotaryEmbedding(6)(x, real.cumsum(-1).clamp(min=1))
    mask = additive_mask(make_attn_mask(real, torch.tensor([[0, 0, 0, 1, 1]] * 3)), x.dtype)
    yield Case((x, rope, mask), (config_of(14, 20), 0), sizes, note="prefix-LM, padded")
    x = numbers(seed, 2, 7 + k, 8 + k, shift=3.0)
    rope = GemmaRotaryEmbedding(6)(x, torch.arange(1, 8 + k).expand(2, 7 + k))
    sizes = {"B": 2, "L": 7 + k, "D": 8 + k, "inner": 9}
    yield Case(
        (x, rope), (config_of(8 + k, 9, eps=0.01), 0), sizes, note="about 3 on average, no mask, rms_norm_eps = 0.01"
    )


class StrengthLayer(GemmaDecoderLayer):
    """The package's layer with a dial: what attention and MLP return is multiplied by `strength` before it is added."""

    strength = 1.0

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        normed = self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(normed, position_embeddings, attention_mask, kv_cache)
        hidden_states = hidden_states + self.strength * attended
        return hidden_states + self.strength * self.mlp(self.post_attention_layernorm(hidden_states))


def layer(first, second=lambda s, h: h + s.mlp(s.post_attention_layernorm(h))):
    """The reference with another first or second half.

    `first(s, x, attend)` and `second(s, h)`: s is the layer, attend(x) its attention.
    """

    class Variant(GemmaDecoderLayer):
        def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
            def attend(x):
                return self.self_attn(x, position_embeddings, attention_mask, kv_cache)[0]

            return second(self, first(self, hidden_states, attend))

    return Variant


def usual(s, x, attend):
    return x + attend(s.input_layernorm(x))


def in_parallel(s, x, attend):
    return x + attend(s.input_layernorm(x)) + s.mlp(s.post_attention_layernorm(x))


def attention_lost(s, x, attend):
    return x + s.mlp(s.post_attention_layernorm(usual(s, x, attend)))


def normalised_residual(s, x, attend):
    normed = s.input_layernorm(x)
    return normed + attend(normed)


def normalised_second(s, h):
    normed = s.post_attention_layernorm(h)
    return normed + s.mlp(normed)


def as_it_is(s, h):
    return h


class MaskForgotten(GemmaDecoderLayer):
    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        return super().forward(hidden_states, position_embeddings, None, kv_cache)


class EpsFixed(GemmaDecoderLayer):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.input_layernorm.eps = self.post_attention_layernorm.eps = 1e-6


def passes_the_cache_on(kind) -> Finding | None:
    """Fed in two pieces with a cache, the tokens must come out as they do all at once."""
    config, where = config_of(14, 20), "layer 1 of 2, fed 3 tokens and then 2, with a cache: "
    mine = kind(config, 1)
    swap_module.take_over(mine, with_weights(GemmaDecoderLayer(config, 1)))
    x, ones = numbers(78, 2, 5, 14), torch.ones(2, 5, dtype=torch.int64)
    mask = additive_mask(make_attn_mask(ones, ones), x.dtype)
    cos, sin = GemmaRotaryEmbedding(6)(x, ones.cumsum(-1))
    cache, pieces = KVCache(config, 2, 9), []
    try:
        with torch.no_grad():
            whole = mine(x, (cos, sin), mask)
            for start, end in ((0, 3), (3, 5)):
                rope = cos[:, start:end], sin[:, start:end]
                pieces.append(mine(x[:, start:end], rope, mask[:, :, start:end, :end], cache))
                if cache.keys[0].any():
                    means = "the number of the layer goes on to the attention: each has a place of its own in the cache"
                    return Finding("layer_idx not passed on", f"{where}layer 0 of the cache was written", means)
                if not cache.keys[1].any():
                    means = "the layer gets a cache and its attention does not: it is the fourth argument of both"
                    return Finding("cache not passed on", f"{where}nothing was written into the cache", means)
                cache.advance(end - start)
    except Exception as error:
        finding = explain_error(error)
        return Finding(finding.name, where + finding.observed, finding.explanation)
    gap = float((torch.cat(pieces, 1) - whole).abs().max())
    if gap < 1e-4:
        return None
    return Finding("cached differs", f"{where}outputs differ from those without a cache by {gap:.2g}", "")


def has_a_dial(kind) -> Finding | None:
    """At strength 0 the layer is the identity, at one half what each part adds is halved."""
    config = config_of(14, 20)
    mine, theirs = kind(config, 0), StrengthLayer(config, 0)
    swap_module.take_over(mine, with_weights(theirs))
    x = numbers(79, 2, 5, 14)
    rope = GemmaRotaryEmbedding(6)(x, torch.arange(1, 6).expand(2, 5))
    means = "what attention returns and what the MLP returns are multiplied by it, each before it is added"
    with torch.no_grad():
        usual = mine(x, rope)
        for strength in (0.0, 0.5):
            mine.strength = theirs.strength = strength
            got, want = mine(x, rope), theirs(x, rope)
            if (got - want).abs().max() < 1e-4:
                continue
            seen = f"with strength = {strength}, set after the layer was made, "
            if torch.equal(got, usual):
                return Finding("no dial", seen + "the layer does what it does without", means)
            if strength == 0:
                change = f"the layer changes its input by up to {(got - x).abs().max():.2g}, expected 0"
                zero = not got.any()
                text = "the sum was multiplied, and what came in with it: the residual is to stay whole"
                return Finding("residual turned down, too" if zero else "dial in one half only", seen + change,
                               text if zero else means)  # fmt: skip
            gap = f"the output differs from the expected one by up to {(got - want).abs().max():.2g}"
            return Finding("dial at another place", seen + gap, means)
    return None


def show_layer(kind):
    """The trained model speaks through layers that are turned down."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so it cannot speak.")
        return
    model, processor = trained()
    print("  Your layer in the trained model, all four turned down together; kept of 24 captions:")
    for strength in (1.0, 0.9, 0.8, 0.7, 0.6):
        with swap_module.swap(model, GemmaDecoderLayer=kind) as mine:
            for layer in mine.language_model.model.layers:
                layer.strength = strength
            kept = words_kept(captions=captions_of(mine, processor))
        shares = "  ".join(f"{what} {share:.2f}" for what, share in kept.items() if what != "captions")
        print(f"  strength {strength:.1f}: {kept['captions']:2} as before   {shares}")


LAYER = Task(
    id="09.2",
    title="GemmaDecoderLayer, with a dial",
    points=4,
    minutes=15,
    level="medium",
    importance="core",
    reference=StrengthLayer,
    cases=layer_cases,
    tolerance=2e-5,
    see='chapter 09, "GemmaDecoderLayer"; the hints of this task',
    reward=show_layer,
    extra=[passes_the_cache_on, has_a_dial],
    mistakes=[
        Mistake(
            "residual from the normalised input",
            "attention's output is added to the normalised input and not to what came in: the stream forgets how large "
            "it was. With attention and MLP silenced, your layer is a norm and not the identity",
            layer(normalised_residual),
        ),
        Mistake(
            "residual from the normalised input",
            "the MLP's output is added to its normalised input, and not to what came out of the attention's half",
            layer(usual, normalised_second),
        ),
        Mistake(
            "residual from the normalised input",
            "both sums add to the normalised input and not to the stream: with attention and MLP silenced, your layer "
            "is two norms and not the identity",
            layer(normalised_residual, normalised_second),
        ),
        Mistake(
            "norm after instead of before",
            "both norms are on the outputs of attention and MLP: they belong on the inputs",
            layer(lambda s, x, attend: x + s.input_layernorm(attend(x)),
                  lambda s, h: h + s.post_attention_layernorm(s.mlp(h))),
        ),
        Mistake(
            "norm after instead of before", "the norm of the MLP is on its output: it belongs on its input",
            layer(usual, lambda s, h: h + s.post_attention_layernorm(s.mlp(h))),
        ),
        Mistake(
            "norm after instead of before", "the norm of the attention is on its output: it belongs on its input",
            layer(lambda s, x, attend: x + s.input_layernorm(attend(x))),
        ),
        Mistake(
            "norm after the sum",
            "the norms come after the sums, as in the first transformers: then nothing runs through untouched",
            layer(lambda s, x, attend: s.input_layernorm(x + attend(x)),
                  lambda s, h: s.post_attention_layernorm(h + s.mlp(h))),
        ),
        Mistake(
            "norms of Gemma 2",
            "`post_attention_layernorm` is on the attention's output: Gemma 2 has a norm of that name there. In Gemma "
            "1 it stands before the MLP",
            layer(lambda s, x, attend: x + s.post_attention_layernorm(attend(s.input_layernorm(x))),
                  lambda s, h: h + s.mlp(h)),
        ),
        Mistake("norm forgotten", "neither attention nor MLP gets a normalised input",
                layer(lambda s, x, attend: x + attend(x), lambda s, h: h + s.mlp(h))),
        Mistake("norm forgotten", "the attention reads the stream as it is, without a norm",
                layer(lambda s, x, attend: x + attend(x))),
        Mistake("norm forgotten", "the MLP reads the stream as it is, without a norm",
                layer(usual, lambda s, h: h + s.mlp(h))),
        Mistake("norms swapped", "each norm does the other's work: `input_layernorm` comes first",
                layer(lambda s, x, attend: x + attend(s.post_attention_layernorm(x)),
                      lambda s, h: h + s.mlp(s.input_layernorm(h)))),
        Mistake("one norm twice", "`input_layernorm` is used before the MLP as well: it has a norm of its own",
                layer(usual, lambda s, h: h + s.mlp(s.input_layernorm(h)))),
        Mistake("residual forgotten", "neither output is added to what came in",
                layer(lambda s, x, attend: attend(s.input_layernorm(x)),
                      lambda s, h: s.mlp(s.post_attention_layernorm(h)))),
        Mistake("residual forgotten", "the attention's output replaces what came in: it is to be added",
                layer(lambda s, x, attend: attend(s.input_layernorm(x)))),
        Mistake("residual forgotten", "the MLP's output replaces what came in: it is to be added",
                layer(usual, lambda s, h: s.mlp(s.post_attention_layernorm(h)))),
        Mistake("in parallel", "the MLP reads what came into the layer, not what the attention made of it",
                layer(in_parallel, as_it_is)),
        Mistake("attention lost", "the MLP's output is added to what came into the layer: the attention's is lost",
                layer(attention_lost, as_it_is)),
        Mistake("MLP first", "the MLP comes before the attention",
                layer(lambda s, x, attend: (lambda h: h + attend(s.input_layernorm(h)))(
                    x + s.mlp(s.post_attention_layernorm(x))), as_it_is)),
        Mistake("mask forgotten", "the mask does not reach the attention", MaskForgotten),
        Mistake("eps not passed on", "the norms have their usual eps, and not the configuration's", EpsFixed),
    ],
)  # fmt: skip

# --- 09.3 --------------------------------------------------------------------------------------------------------


def pieces(seed, D, zeros=False):
    """attend, think, norm_1, norm_2: small functions in place of the parts of a layer, [B, L, D] -> [B, L, D]."""
    mixer, first, second = numbers(seed + 1, D, D), numbers(seed + 2, D, 2 * D), numbers(seed + 3, 2 * D, D)
    gains = numbers(seed + 4, D, scale=0.3, shift=1.0), numbers(seed + 5, D, scale=0.3, shift=1.0)

    def attend(x):
        weights = (x @ x.transpose(-1, -2) / D).softmax(-1)
        return torch.zeros_like(x) if zeros else weights @ x @ mixer

    def think(x):
        return torch.zeros_like(x) if zeros else F.gelu(x @ first, approximate="tanh") @ second / D

    def norm_1(x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gains[0]

    def norm_2(x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gains[1]

    return attend, think, norm_1, norm_2


FAULTS = {  # what can be observed of each, and its name
    "residual": (
        "the attention's output is added to the normalised input: with attention and MLP "
        "silenced, the layer is not the identity",
        "residual from the normalised input",
    ),
    "raw": (
        "the attention reads the stream as it is: a larger input gives sharper weights",
        "attention without a norm",
    ),
    "after": (
        "the MLP reads the stream as it is, and its output is normalised instead",
        "norm after instead of before",
    ),
}


def block(x, attend, think, norm_1, norm_2, faults=()):
    normed = norm_1(x)
    h = (normed if "residual" in faults else x) + attend(x if "raw" in faults else normed)
    return h + (norm_2(think(h)) if "after" in faults else think(norm_2(h)))


def block_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "L": 5 + k, "D": 6}
    yield Case((numbers(seed, 2, 5 + k, 6, scale=2.0), *pieces(seed, 6)), sizes=sizes)
    yield Case((numbers(seed, 2, 5 + k, 6, scale=30.0), *pieces(seed + 9, 6)), sizes=sizes, note="about 30 in size")
    silent = pieces(seed, 6, zeros=True)
    yield Case((numbers(seed, 2, 5 + k, 6), *silent), sizes=sizes, note="attention and MLP return zeros")


def show_block(thing):
    x = numbers(0, 1, 3, 6)
    silent = (thing(x, *pieces(0, 6, zeros=True)) - x).abs().max()
    print(f"  attention and MLP return zeros: the layer changes x by {silent:.2f}")
    for size in (1, 10, 100):
        change = (thing(size * x, *pieces(0, 6)) - size * x).square().mean().sqrt()
        print(f"  x about {size:3} in size: the layer adds about {change:.1f}")


BLOCK = Task(
    id="09.3",
    title="find the wrong residual",
    points=3,
    minutes=10,
    level="medium",
    importance="core",
    reference=block,
    cases=block_cases,
    tolerance=2e-5,
    see='chapter 09, "GemmaDecoderLayer"; the hints of this task: which input would show each fault?',
    reward=show_block,
    mistakes=[
        *faults_left(FAULTS, lambda some: lambda *inputs: block(*inputs, faults=some)),
        Mistake(
            "residual from the normalised input", "the MLP's output is added to its normalised input",
            lambda x, attend, think, norm_1, norm_2: (lambda n: n + think(n))(norm_2(x + attend(norm_1(x)))),
        ),
        Mistake(
            "residual from the normalised input", "both sums add to the normalised input, and not to the stream",
            lambda x, attend, think, norm_1, norm_2: (lambda n: n + think(n))(
                (lambda n: norm_2(n + attend(n)))(norm_1(x))),
        ),
        Mistake(
            "norm after instead of before", "both norms are on the outputs now",
            lambda x, attend, think, norm_1, norm_2: (lambda h: h + norm_2(think(h)))(x + norm_1(attend(x))),
        ),
        Mistake(
            "norm after the sum", "the norms come after the sums, as in the first transformers",
            lambda x, attend, think, norm_1, norm_2: (lambda h: norm_2(h + think(h)))(norm_1(x + attend(x))),
        ),
        Mistake(
            "norm forgotten", "the MLP reads the stream as it is, without a norm",
            lambda x, attend, think, norm_1, norm_2: (lambda h: h + think(h))(x + attend(norm_1(x))),
        ),
        Mistake(
            "normalised twice", "the MLP's input is normalised and its output as well",
            lambda x, attend, think, norm_1, norm_2: (lambda h: h + norm_2(think(norm_2(h))))(x + attend(norm_1(x))),
        ),
        Mistake(
            "attention lost", "the MLP's output is added to what came into the layer: what the attention added is lost",
            lambda x, attend, think, norm_1, norm_2: x + think(norm_2(x + attend(norm_1(x)))),
        ),
        Mistake(
            "in parallel", "the MLP reads what came into the layer, not what the attention made of it",
            lambda x, attend, think, norm_1, norm_2: x + attend(norm_1(x)) + think(norm_2(x)),
        ),
        Mistake(
            "one norm twice", "`norm_1` is used before the MLP as well",
            lambda x, attend, think, norm_1, norm_2: (lambda h: h + think(norm_1(h)))(x + attend(norm_1(x))),
        ),
        Mistake(
            "residual forgotten", "the outputs are not added to what came in",
            lambda x, attend, think, norm_1, norm_2: think(norm_2(attend(norm_1(x)))),
        ),
        Mistake(
            "residual forgotten", "the MLP's output replaces the stream: it is to be added to it",
            lambda x, attend, think, norm_1, norm_2: think(norm_2(x + attend(norm_1(x)))),
        ),
        Mistake(
            "residual forgotten", "the attention's output replaces the stream: it is to be added to it",
            lambda x, attend, think, norm_1, norm_2: (lambda h: h + think(norm_2(h)))(attend(norm_1(x))),
        ),
    ],
)  # fmt: skip

# --- 09.4 --------------------------------------------------------------------------------------------------------


class WordTable(nn.Module):
    """One table for both ends, by matrix products with one-hot rows: another way than the learner's."""

    def __init__(self, vocab_size, hidden_size):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)

    def embed(self, input_ids):
        V, D = self.embed_tokens.weight.shape
        return F.one_hot(input_ids, V).float() @ self.embed_tokens.weight * self.factor(V, D)

    def factor(self, V, D):
        return D**0.5

    def lm_head(self, hidden_states):
        return hidden_states @ self.embed_tokens.weight.T


def both_ends(kind, table, input_ids, states):
    """What a table of words makes of ids and of states, how the table learns from both, and what there is to learn."""
    words = kind(*table.shape)
    with torch.no_grad():
        words.embed_tokens.weight.copy_(table)
    with torch.enable_grad():
        embeddings, logits = words.embed(input_ids), words.lm_head(states)
        ends = [end for end in (embeddings, logits) if isinstance(end, torch.Tensor) and end.requires_grad]
        total = sum((end * numbers(i, *end.shape)).sum() for i, end in enumerate(ends))
        gradient = torch.autograd.grad(total, words.embed_tokens.weight)[0] if ends else torch.zeros_like(table)
    return {
        "embeddings": embeddings.detach() if isinstance(embeddings, torch.Tensor) else embeddings,
        "logits": logits.detach() if isinstance(logits, torch.Tensor) else logits,
        "gradient of the table": gradient,
        "numbers to learn": sum(parameter.numel() for parameter in words.parameters()),
    }


def table_cases(seed):
    k = larger(seed)
    sizes = {"V": 11, "D": 6, "B": 2, "L": 5}
    ids = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(seed))
    yield Case((numbers(seed, 11, 6), ids, numbers(seed + 20, 2, 5, 6)), sizes=sizes)
    sizes = {"V": 5, "D": 9 + k, "B": 3, "L": 4 + k}
    ids = torch.randint(0, 5, (3, 4 + k), generator=torch.Generator().manual_seed(seed))
    yield Case(
        (numbers(seed, 5, 9 + k), ids, numbers(seed + 30, 3, 4 + k, 9 + k)),
        sizes=sizes,
        note="fewer words than features",
    )


def scaled(factor):
    return type("Scaled", (WordTable,), {"factor": lambda self, V, D: factor(V, D)})


def headed(head):
    return type("Headed", (WordTable,), {"lm_head": lambda self, states: head(self.embed_tokens.weight, states)})


class OwnHead(WordTable):
    def __init__(self, vocab_size, hidden_size):
        super().__init__(vocab_size, hidden_size)
        self.head = nn.Linear(hidden_size, vocab_size, bias=False)

    def lm_head(self, hidden_states):
        return self.head(hidden_states)


class OwnHeadUnscaled(OwnHead):
    def factor(self, V, D):
        return 1.0


class CopiedHead(WordTable):
    def __init__(self, vocab_size, hidden_size):
        super().__init__(vocab_size, hidden_size)
        self.head = self.embed_tokens.weight.detach().clone()

    def lm_head(self, hidden_states):
        return F.linear(hidden_states, self.head)


def is_tied(case, got, want) -> Finding | None:
    if got["numbers to learn"] > want["numbers to learn"]:
        return Finding(
            "head not tied",
            f"your class has {got['numbers to learn']} numbers to learn, expected {want['numbers to learn']}",
            "the head has weights of its own: it is to be the embedding table once more",
        )
    return None


def show_table(kind):
    with torch.device("meta"):  # counts, without allocating
        count = sum(parameter.numel() for parameter in kind(257216, 2048).parameters())
    print(f"  In the 3B model yours has {count:,} weights for both ends; with two tables it would be {2 * count:,}.")


TABLE = Task(
    id="09.4",
    title="tie a head",
    points=2,
    minutes=10,
    level="easy",
    importance="deepen",
    reference=WordTable,
    prediction=Prediction(
        "Two ends of a decoder for a vocabulary of 11 and a width of 6: how many numbers are there to learn?",
        truth=66,
        tempting=132,
        why="The head is the table itself, so there is one matrix of 11 x 6 numbers.",
    ),
    cases=table_cases,
    use=both_ends,
    gradients=False,
    see='chapter 09, "GemmaForCausalLM and its tied head"; the hints of this task',
    reward=show_table,
    symptoms=[is_tied],
    mistakes=[
        Mistake("scale forgotten", "the embeddings are the rows of the table as they are: they would be tiny beside "
                "what the layers add", scaled(lambda V, D: 1.0)),
        Mistake("scale doubled", "the embeddings are multiplied by D: the square root is missing, or the factor is "
                "there twice", scaled(lambda V, D: D)),
        Mistake("divided instead of multiplied", "the embeddings are divided by the square root of D",
                scaled(lambda V, D: D**-0.5)),
        Mistake("scale of the vocabulary", "the factor is the square root of V and not of D",
                scaled(lambda V, D: V**0.5)),
        Mistake("head scaled too", "the logits are multiplied by the square root of D: the head uses the table alone",
                headed(lambda table, states: states @ table.T * table.shape[1] ** 0.5)),
        Mistake("head divided", "the logits are divided by the square root of D: the head uses the table as it is",
                headed(lambda table, states: states @ table.T * table.shape[1] ** -0.5)),
        Mistake("head not tied", "the logits have nothing to do with the table: the head has weights of its own",
                OwnHead),
        Mistake("head not tied", "the head has weights of its own, and the embeddings are not scaled", OwnHeadUnscaled),
        Mistake("head not tied", "the head keeps a copy of the table, from the time when the object was made: trained "
                "weights that are loaded later never reach it", CopiedHead),
        Mistake("cut off from the table", "the logits are right, and no gradient flows from them into the table: "
                ".detach(), .data or no_grad on the way", headed(lambda table, states: states @ table.detach().T)),
        Mistake("softmax in the head", "probabilities come out of the head; logits are the numbers before the softmax",
                headed(lambda table, states: (states @ table.T).softmax(-1))),
        Mistake("root cut off", "the square root of D is cut off to a whole number", scaled(lambda V, D: int(D**0.5))),
    ],
)  # fmt: skip

# --- 09.5 --------------------------------------------------------------------------------------------------------


def logit_lens(states, norm, table):
    """Layer by layer."""
    tokens, probabilities = [], []
    for state in states:
        p = (norm(state) @ table.T).softmax(dim=-1)
        tokens.append(p.argmax(dim=-1))
        probabilities.append(p.amax(dim=-1))
    return torch.stack(tokens), torch.stack(probabilities)


def gain(seed, D):
    """A norm as at the end of a decoder, with a scale of its own for each feature."""
    weight = numbers(seed + 70, D, scale=0.5, shift=1.0)
    return lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def lens_cases(seed):
    k = larger(seed)

    def case(layers, B, L, D, V, note=""):
        states = [numbers(seed + 3 * i, B, L, D, scale=1.0 + i) for i in range(layers + 1)]
        sizes = {"layers + 1": layers + 1, "B": B, "L": L, "D": D, "V": V}
        return Case((states, gain(seed, D), numbers(seed + 40, V, D, scale=0.7)), sizes=sizes, note=note)

    yield case(3 + k, 2, 5, 6 + k, 9 + k)
    yield case(2, 1, 7, 8, 4, "fewer words than features")


def lens(
    read=lambda state, norm: norm(state),
    axis=-1,
    states=list,
    best=lambda logits, p: p.max(dim=-1),
    words=lambda table, norm: table,
):
    """The reference with one thing done differently."""

    def function(all_states, norm, table):
        logits = torch.stack([read(state, norm) for state in states(all_states)]) @ words(table, norm).T
        values, tokens = best(logits, logits.softmax(dim=axis))
        return tokens, values

    return function


def last_alone_normalised(states, norm, table):
    logits = torch.stack([*states[:-1], norm(states[-1])]) @ table.T
    values, tokens = logits.softmax(dim=-1).max(dim=-1)
    return tokens, values


def lowest(logits, p):
    return p.min(dim=-1)


@functools.cache
def streams(first: int, count: int):
    """(states, standing): the stream of the trained model at each place that chooses a word of the true captions.

    `states` is a list of [M, D], before layer 0 and after each layer; `standing` [M] the ids at these places.
    """
    model, processor = trained()
    shown = [make_scene(first + i) for i in range(count)]
    inputs = processor(text=[PROMPT] * count, images=[draw(s) for s in shown], suffix=[caption(s) for s in shown])
    layers, states = model.language_model.model.layers, []
    hooks = [layers[0].register_forward_pre_hook(lambda module, args: states.append(args[0]))]
    hooks += [part.register_forward_hook(lambda module, args, out: states.append(out)) for part in layers]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    chooses = torch.zeros_like(inputs["labels"], dtype=torch.bool)
    chooses[:, :-1] = inputs["labels"][:, 1:] != -100
    return [state[chooses] for state in states], inputs["input_ids"][chooses]


def last_norm_and_table():
    decoder = trained()[0].language_model.model
    return decoder.norm, decoder.embed_tokens.weight.detach()


def show_lens(thing):
    """One caption of the trained model, read at each layer, and the count over 40."""
    from ..visualize import show_logit_lens  # here: matplotlib is not needed for anything else

    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so there is nothing to read.")
        return
    tokenizer = trained()[1].tokenizer
    states, standing = streams(7001, 1)
    tokens, probabilities = thing([state[None] for state in states], *last_norm_and_table())
    words = [tokenizer.convert_ids_to_tokens(row.tolist()) for row in tokens[:, 0]]
    names = ["embedding", *(f"layer {i}" for i in range(len(states) - 1))]
    axes = show_logit_lens(words, probabilities[:, 0], tokenizer.convert_ids_to_tokens(standing.tolist()), names)
    axes.figure.set_size_inches(9.5, 3.6)  # wide enough for long words side by side
    states, standing = streams(8200, 40)
    tokens = thing([state[None] for state in states], *last_norm_and_table())[0][:, 0]
    print("  40 captions: how often each row names")
    for name, row in zip(names, tokens):
        same, here = (row == tokens[-1]).float().mean(), (row == standing).float().mean()
        print(f"  {name:10} the word that is written {same:.2f}, the token that stands there {here:.2f}")


LENS = Task(
    id="09.5",
    title="the logit lens",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    reference=logit_lens,
    cases=lens_cases,
    prediction=Prediction(
        "Before any layer has worked, which token does the tied head of the trained model find likeliest?",
        truth="the token that stands there",
        tempting="the word that will be written",
        why="The state is still the embedding of the token that stands there, and of all rows of the table that row "
        "fits it best. In this model the lens goes on naming that token up to the layer before the last.",
        options=("the token that stands there", "the word that will be written", "the most frequent word"),
    ),
    see='chapter 09, "The logit lens"; the hints of this task',
    reward=show_lens,
    mistakes=[
        Mistake(
            "norm forgotten",
            "the head reads the states as they are: it was trained on normalised ones, and the stream grows from layer "
            "to layer",
            lens(lambda state, norm: state),
        ),
        Mistake("norm twice", "the states are normalised twice", lens(lambda state, norm: norm(norm(state)))),
        Mistake("softmax over the wrong axis", "the softmax runs over the positions", lens(axis=-2)),
        Mistake("softmax over the wrong axis", "the softmax runs over the layers", lens(axis=0)),
        Mistake(
            "logits instead of probabilities", "the second result is the largest logit: the softmax is missing",
            lens(best=lambda logits, p: logits.max(dim=-1)),
        ),
        Mistake("embedding left out", "the first state is missing: before layer 0 there is something to read, too",
                lens(states=lambda states: states[1:])),
        Mistake("last layer left out", "the last state is missing", lens(states=lambda states: states[:-1])),
        Mistake("last layer only", "every row is the last layer's", lens(states=lambda s: [s[-1]] * len(s))),
        Mistake(
            "states added up", "the states are added up on the way: each holds all that came before it already",
            lens(states=lambda states: list(torch.stack(states).cumsum(0))),
        ),
        Mistake(
            "what each layer adds", "what each layer adds is read, and not the stream after it",
            lens(states=lambda s: [s[0], *(b - a for a, b in zip(s, s[1:]))]),
        ),
        Mistake("least likely", "the least likely word is named", lens(best=lowest)),
        Mistake("order of the results", "the probabilities come first", lambda *inputs: logit_lens(*inputs)[::-1]),
        Mistake("norm forgotten", "only the last state goes through the norm: the head reads all of them, and wants "
                "each "
                "normalised", last_alone_normalised),
        Mistake("logarithms", "the second result is the logarithm of the probability",
                lens(best=lambda logits, p: logits.log_softmax(-1).max(dim=-1))),
        Mistake("table normalised, too", "the norm is applied to the table as well: it is for the states",
                lens(words=lambda table, norm: norm(table))),
        Mistake("logits scaled", "the logits are multiplied by the square root of D: the head uses the table as it is",
                lens(words=lambda table, norm: table * table.shape[1] ** 0.5)),
        Mistake("logits scaled", "the logits are divided by the square root of D: the head uses the table as it is",
                lens(words=lambda table, norm: table * table.shape[1] ** -0.5)),
    ],
)  # fmt: skip

# --- 09.6 --------------------------------------------------------------------------------------------------------


def tuned_lens(states, last):
    return [torch.linalg.lstsq(state, last).solution for state in states]


def tune_cases(seed):
    """States [M, D] that become, by a map and some noise, the last state."""
    k = larger(seed)
    for M, D, layers, note in ((40, 6 + k, 3, ""), (25 + k, 4, 2 + k, "about 2 on average")):
        states = [numbers(seed + 7 * i, M, D, shift=2.0 if note else 0.0) for i in range(layers)]
        last = sum(state @ numbers(seed + 50 + i, D, D, scale=0.5) for i, state in enumerate(states))
        yield Case((states, last + 0.3 * numbers(seed + 90, M, D)), sizes={"M": M, "D": D}, note=note)


def tuning(fit):
    """The reference with another fit: a function (state, last, all states, index)."""
    return lambda states, last: [fit(state, last, states, i) for i, state in enumerate(states)]


def solve(one, other):
    return torch.linalg.lstsq(one, other).solution


def centred(x):
    return x - x.mean(0)


def one_scale(state, last, states, i):
    return torch.eye(state.shape[-1]) * (state * last).sum() / state.square().sum()


def scale_for_each(state, last, states, i):
    return torch.diag((state * last).sum(0) / state.square().sum(0))


def ridge(penalty):
    """Least squares with a penalty on large numbers in the map."""
    return tuning(
        lambda state, last, states, i: torch.linalg.solve(
            state.T @ state + penalty * torch.eye(state.shape[1]), state.T @ last
        )
    )


def show_tuned(thing):
    """Plain and tuned lens, on captions that no map was fitted to."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so there is nothing to read.")
        return
    rows = agreement(thing)
    print("  maps fitted on 100 captions, read on 40 others: the share of words that are the written ones")
    for name, plain, tuned in rows:
        print(f"  {name:10} plain lens {plain:.2f}, tuned lens {tuned:.2f}")


def agreement(thing):
    """(name, plain, tuned) for each state: how often the lens names the word that the last layer names."""
    (fitted, _), (held_out, _) = streams(8000, 100), streams(8200, 40)
    norm, table = last_norm_and_table()
    with torch.no_grad():
        maps = [turned.float() for turned in thing([state.double() for state in fitted], fitted[-1].double())]
        written = (norm(held_out[-1]) @ table.T).argmax(-1)
        shares = [
            [float(((norm(state @ turn) @ table.T).argmax(-1) == written).float().mean()) for turn in (one, turned)]
            for state, turned, one in zip(held_out, maps, [torch.eye(table.shape[1])] * len(maps), strict=True)
        ]
    names = ["embedding", *(f"layer {i}" for i in range(len(shares) - 1))]
    return [(name, *pair) for name, pair in zip(names, shares, strict=True)]


def read_off_the_embedding():
    return round(100 * agreement(tuned_lens)[0][2]) if trained() is not None else "no trained model here"


TUNED = Task(
    id="09.6",
    title="a tuned lens",
    points=4,
    minutes=15,
    level="medium",
    importance="deepen",
    reference=tuned_lens,
    cases=tune_cases,
    gradients=False,
    tolerance=2e-3,
    see='chapter 09, "The logit lens"; the hints of this task. In what was seen, [0] is the first map',
    reward=show_tuned,
    prediction=Prediction(
        "Of 100 words of the trained model, how many does a lens with a fitted map read off the embedding, before any "
        "layer has worked?",
        truth=read_off_the_embedding,
        tempting=0,
        why="The plain lens reads none. The state is then the embedding of the token that stands there, so the map "
        "knows nothing of the picture: it has learned which word usually follows which, and that is half of a caption.",
    ),
    mistakes=[
        Mistake("mapped the wrong way", "your map makes an early state of the last one: it is to make the last of "
                "the early one", tuning(lambda state, last, states, i: solve(last, state))),
        Mistake("transposed", "your map is the right one transposed: it is used as `state @ map`",
                tuning(lambda state, last, states, i: solve(state, last).T)),
        Mistake("fitted to the next layer", "each map leads to the next layer's state, and not to the last one",
                tuning(lambda state, last, states, i: solve(state, [*states, last][i + 1]))),
        Mistake("one map for all", "all layers have the same map, that of the first",
                tuning(lambda state, last, states, i: solve(states[0], last))),
        Mistake("one map for all", "all layers have the same map: the states were put together before the fit",
                tuning(lambda state, last, states, i: solve(torch.cat(list(states)), last.repeat(len(states), 1)))),
        Mistake("difference fitted", "your map leads from a state to what is missing to the last one: without adding "
                "the state again it is not a map to the last state",
                tuning(lambda state, last, states, i: solve(state, last - state))),
        Mistake("one number", "your map is a multiple of the identity: it makes states longer or shorter, and turns "
                "nothing", tuning(one_scale)),
        Mistake("a number for each feature", "your map multiplies each feature by a number: features cannot be mixed",
                tuning(scale_for_each)),
        Mistake("means taken off", "the mean over the M states is taken off before the fit: your map is then right "
                "for states without their mean, and it is used on states as they are",
                tuning(lambda state, last, states, i: solve(centred(state), centred(last)))),
        Mistake("product instead of a fit", "your map is the product of the states with the last ones: it becomes the "
                "best map only after it is divided by the states' product with themselves",
                [tuning(lambda state, last, states, i: state.T @ last),
                 tuning(lambda state, last, states, i: state.T @ last / len(state))]),
        Mistake("results instead of maps", "these are the mapped states; the maps are asked for, [D, D] each",
                tuning(lambda state, last, states, i: state @ solve(state, last))),
        Mistake("penalty added", "a number is added to the diagonal before the system is solved (a ridge): that is not "
                "least squares any more, it pulls the map towards 0", [ridge(penalty) for penalty in (10, 1, 0.1)]),
        Mistake("all of what lstsq returns", "lstsq returns several results, and the map is one of them",
                lambda states, last: [torch.linalg.lstsq(state, last) for state in states]),
        Mistake("a map left out", "the map of the last state is missing: there is one for each state",
                lambda states, last: tuned_lens(states[:-1], last)),
        Mistake("a map left out", "the map of the first state is missing", lambda states, last: tuned_lens(
            states[1:], last)),
    ],
)  # fmt: skip

TASKS = [PRODUCT, LAYER, BLOCK, TABLE, LENS, TUNED]
