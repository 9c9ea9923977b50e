"""Usual mistakes in the video's form, as code that makes them: what the exercises' checks do not have.

They are recognised as in the checks, by what they compute (see checking.py).
"""

from collections.abc import Callable

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from ... import modeling_gemma as gemma
from ... import modeling_siglip as siglip
from ..tasks import Mistake
from . import standins

# --- the image encoder -----------------------------------------------------------------------------------------------


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


IMAGE_MLP = [
    Mistake("ReLU instead of GELU", "your numbers are those of ReLU", NoGelu),
    Mistake("fc1 used twice", "your numbers need fc1 in both places", OneLinearTwice),
]  # fmt: skip


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


ENCODERS = [
    Mistake("last norm forgotten", "your numbers are those without post_layernorm", NoLastNorm),
    Mistake("encoder skipped", "your numbers are those of the embeddings, normalised: the layers are never used",
            NoEncoder),
    Mistake("eps not passed on", EPS.message, default_eps(siglip.SiglipVisionTransformer)),
]  # fmt: skip
LAYERS = [
    Mistake("only the last layer used", "every layer gets what came in, so the last one alone counts: each is to get "
            "what the one before it made", OnlyLastLayer),
    Mistake("a layer left out", "your numbers are those without the last layer", OneLayerLess),
    Mistake("one layer for all", "your numbers are those of the first layer, used again and again", FirstLayerAgain),
]  # fmt: skip


# --- the processor ----------------------------------------------------------------------------------------------------


def swapped_sides(image, size, resample=None, **_):
    return image.resize((size[0], size[1]), resample=resample)


def always_bicubic(image, size, resample=None, **_):
    return image.resize(size[::-1], Image.Resampling.BICUBIC)


SIZES = [
    Mistake("height and width swapped", "PIL's resize takes (width, height), `size` is (height, width)", swapped_sides),
    Mistake("other interpolation", "`resample` is not passed on: your picture is bicubic whatever it says",
            always_bicubic),
]  # fmt: skip


# --- rotary positions, norm and attention ----------------------------------------------------------------------------


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


ROTARIES = [
    Mistake("// instead of /", "the exponents are rounded down to 0 (// instead of /): every pair turns at the same "
            "speed", FlooredExponent),
]  # fmt: skip
NORMS = [
    Mistake("wrong axis", "your numbers are those you get when the mean runs over the tokens instead of the features "
            "of one token", OneNorm),
]  # fmt: skip
ATTENTIONS = [
    Mistake("scale of the width", "the scores are divided by the square root of hidden_size: the sum that makes up a "
            "score has head_dim terms", ScaleByHidden),
    Mistake("scale of the width", "the scores are divided by the square root of all heads' width together: the sum "
            "that makes up a score has head_dim terms", ScaleByQueries),
    Mistake("cache not used", "without a cache all is right; with one, what it holds is not used", CacheForgotten),
]  # fmt: skip


# --- the cache -------------------------------------------------------------------------------------------------------


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


# --- the decoder -----------------------------------------------------------------------------------------------------


def cache_lost(kind) -> type:
    """The class, with the cache not passed on to what is inside."""

    class Lost(kind):
        def forward(self, *arguments, **named):
            return super().forward(*arguments, **{**named, "kv_cache": None})

    return Lost


def tanh_gelu(x):
    return F.gelu(x, approximate="tanh")


def mlp(inside):
    """The reference with another inside: a function of the gate's and the up matrix's outputs."""

    class Variant(gemma.GemmaMLP):
        def forward(self, x):
            return self.down_proj(inside(self.gate_proj(x), self.up_proj(x)))

    return Variant


class GeluAtTheEnd(gemma.GemmaMLP):
    def forward(self, x):
        return tanh_gelu(self.down_proj(self.gate_proj(x) * self.up_proj(x)))


class OneAfterTheOther(gemma.GemmaMLP):
    """An error, since `up_proj` reads tokens of width D."""

    def forward(self, x):
        return self.down_proj(self.up_proj(tanh_gelu(self.gate_proj(x))))


GATED_MLPS = [
    Mistake(
        "GELU on the wrong branch",
        "your numbers are those you get with GELU on the output of `up_proj`. The two matrices have the same "
        "shape, and trained weights know which is which",
        mlp(lambda gate, up: gate * tanh_gelu(up)),
    ),
    Mistake(
        "exact GELU",
        "your numbers are those of the exact GELU; Gemma was trained with the approximation by tanh. They differ "
        "by less than a thousandth: too little to see, too much to be equal",
        mlp(lambda gate, up: F.gelu(gate) * up),
    ),
    Mistake("exact GELU", "your GELU is the exact one, and it is on the wrong branch",
            mlp(lambda gate, up: gate * F.gelu(up))),
    Mistake("GELU on both branches", "both outputs go through GELU",
            mlp(lambda gate, up: tanh_gelu(gate) * tanh_gelu(up))),
    Mistake("GELU after the product", "GELU comes after the multiplication: it belongs on one of the two factors",
            mlp(lambda gate, up: tanh_gelu(gate * up))),
    Mistake("GELU at the end", "GELU comes after `down_proj`", GeluAtTheEnd),
    Mistake("GELU forgotten", "nothing bends: gate and values are multiplied as they are",
            mlp(lambda gate, up: gate * up)),
    Mistake("SiLU instead of GELU", "your numbers are those of SiLU, which Llama takes at this place",
            mlp(lambda gate, up: F.silu(gate) * up)),
    Mistake("ReLU instead of GELU", "negative gates are cut off sharply: that is ReLU",
            mlp(lambda gate, up: F.relu(gate) * up)),
    Mistake("sigmoid instead of GELU", "your gate is a sigmoid, between 0 and 1: the first gated units had it so",
            mlp(lambda gate, up: torch.sigmoid(gate) * up)),
    Mistake("no gate", "your numbers are those of a plain MLP: `gate_proj` has no effect",
            mlp(lambda gate, up: tanh_gelu(up))),
    Mistake("no gate", "your numbers are those of a plain MLP: `up_proj` has no effect",
            mlp(lambda gate, up: tanh_gelu(gate))),
    Mistake("added instead of multiplied", "gate and values are added: a gate multiplies",
            mlp(lambda gate, up: tanh_gelu(gate) + up)),
    Mistake("one after the other", "the two matrices are applied one after the other: both read the same token",
            OneAfterTheOther),
]  # fmt: skip


LOST = "without a cache all is right; with one, it does not reach the attention: kv_cache has to be passed on"


DECODER_LAYERS = [Mistake("cache not passed on", LOST, cache_lost(standins.GemmaDecoderLayer))]


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


# --- the whole -------------------------------------------------------------------------------------------------------


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


# --- sampling --------------------------------------------------------------------------------------------------------


def drop_crossing(probs, p):
    ordered, places = probs.sort(dim=-1, descending=True)
    kept = ordered.masked_fill(ordered.cumsum(-1) > p, 0.0)
    return places.gather(-1, torch.multinomial(kept, num_samples=1))


def sorted_places(probs, p):
    ordered, _ = probs.sort(dim=-1, descending=True)
    return torch.multinomial(ordered.masked_fill(ordered.cumsum(-1) - ordered > p, 0.0), num_samples=1)


DRAWS = [
    Mistake("crossing token dropped", "the token that brings the sum over p is left out: it belongs in", drop_crossing),
    Mistake("order not undone", "what comes back is a place in the sorted order: it has to be looked up among the "
            "tokens", sorted_places),
    Mistake("nothing dropped", "unlikely tokens are drawn, too",
            lambda probs, p: torch.multinomial(probs, num_samples=1)),
]  # fmt: skip


# --- the projector ---------------------------------------------------------------------------------------------------


class Projecting(nn.Module):
    """The reference with a change, for the imitations."""

    def __init__(self, config):
        super().__init__()
        self.linear = nn.Linear(config.vision_config.hidden_size, config.projection_dim)

    def forward(self, image_features):
        return self.change(self.linear(image_features))

    def change(self, x):
        return x


class Shrunk(Projecting):
    def change(self, x):
        return x / x.shape[-1] ** 0.5


class Grown(Projecting):
    def change(self, x):
        return x * x.shape[-1] ** 0.5


class Bent(Projecting):
    def change(self, x):
        return F.gelu(x, approximate="tanh")


class Rectified(Projecting):
    def change(self, x):
        return x.relu()


class Normed(Projecting):
    def change(self, x):
        return F.layer_norm(x, x.shape[-1:])


class BiasUnused(Projecting):
    def forward(self, image_features):
        return image_features @ self.linear.weight.T


class Pooled(Projecting):
    def change(self, x):
        return x.mean(dim=1, keepdim=True)


PROJECTORS = [
        Mistake("divided by the root of D", "each number is the expected one divided by the square root of D: image "
                "features are left as the projector makes them", Shrunk),
        Mistake("multiplied by the root of D", "each number is the expected one times the square root of D: text is "
                "multiplied, pictures are not", Grown),
        Mistake("bent", "a GELU comes after the linear map: the projector is linear and nothing else", Bent),
        Mistake("bent", "negative numbers are cut off: the projector is linear and nothing else", Rectified),
        Mistake("normalised", "the result is normalised: there is no norm in the projector", Normed),
        Mistake("bias unused", "your numbers are those you get without the bias", BiasUnused),
        Mistake("patches averaged", "the patches are averaged into one: each keeps a vector of its own", Pooled),
]  # fmt: skip
