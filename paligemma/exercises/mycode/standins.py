"""The package's parts with the signatures of the video: what learners' parts are compared with, and what takes the
place of one that is wrong or not written yet, so that the others can be judged.

In the video the mask that is added and the positions are made once, in the whole model, and handed down; rotary
embeddings sit in every attention; the decoder multiplies all it gets by sqrt(D); the cache grows; results are dicts.
"""

import inspect

import torch
from torch import nn

from ... import modeling_gemma, modeling_siglip, processing_paligemma
from ...modeling_siglip import SiglipVisionModel
from . import calls


class KVCache:
    """Keys and values of every layer [B, H_kv, T, d], longer by the new tokens at each update."""

    def __init__(self):
        self.key_cache: list[torch.Tensor] = []
        self.value_cache: list[torch.Tensor] = []

    def num_items(self) -> int:
        return self.key_cache[0].shape[-2] if self.key_cache else 0

    @property
    def length(self) -> int:  # the package's name for it
        return self.num_items()

    def advance(self, new_tokens: int) -> None:
        """The package's model counts; this cache need not be told."""

    def update(self, key_states, value_states, layer_idx: int):
        if layer_idx == len(self.key_cache):
            self.key_cache.append(key_states)
            self.value_cache.append(value_states)
        else:
            self.key_cache[layer_idx] = torch.cat([self.key_cache[layer_idx], key_states], dim=-2)
            self.value_cache[layer_idx] = torch.cat([self.value_cache[layer_idx], value_states], dim=-2)
        return self.key_cache[layer_idx], self.value_cache[layer_idx]


class GemmaRotaryEmbedding(modeling_gemma.GemmaRotaryEmbedding):
    def __init__(self, dim, max_position_embeddings=2048, base=10000.0, device=None):
        super().__init__(dim, base)

    def forward(self, x, position_ids, seq_len=None):
        return super().forward(x, position_ids)


def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    return modeling_gemma.apply_rotary_pos_emb(q, k, cos, sin)


class GemmaAttention(modeling_gemma.GemmaAttention):
    def __init__(self, config, layer_idx=None):
        super().__init__(config, layer_idx)
        self.rotary_emb = GemmaRotaryEmbedding(config.head_dim, base=config.rope_theta)

    def forward(self, hidden_states, attention_mask=None, position_ids=None, kv_cache=None, **kwargs):
        rope = self.rotary_emb(hidden_states, position_ids)
        return super().forward(hidden_states, rope, attention_mask, kv_cache)


class GemmaDecoderLayer(nn.Module):
    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.self_attn = GemmaAttention(config, layer_idx)
        self.mlp = modeling_gemma.GemmaMLP(config)
        self.input_layernorm = modeling_gemma.GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = modeling_gemma.GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states, attention_mask=None, position_ids=None, kv_cache=None):
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), attention_mask, position_ids, kv_cache)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class GemmaModel(nn.Module):
    """The steps are methods, so that a mistake can replace one."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([GemmaDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = modeling_gemma.GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def get_input_embeddings(self):
        return self.embed_tokens

    def scaled(self, inputs_embeds):
        return inputs_embeds * self.config.hidden_size**0.5

    def through_layers(self, hidden_states, *arguments):
        for layer in self.layers:
            hidden_states = layer(hidden_states, *arguments)
        return hidden_states

    def forward(self, attention_mask=None, position_ids=None, inputs_embeds=None, kv_cache=None):
        hidden_states = self.scaled(inputs_embeds)
        return self.norm(self.through_layers(hidden_states, attention_mask, position_ids, kv_cache))


class GemmaForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = GemmaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def tie_weights(self):
        self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, attention_mask=None, position_ids=None, inputs_embeds=None, kv_cache=None, labels=None):
        hidden_states = self.model(attention_mask, position_ids, inputs_embeds, kv_cache)
        return {"logits": self.lm_head(hidden_states).float(), "loss": None, "kv_cache": kv_cache}


class PaliGemmaForConditionalGeneration(nn.Module):
    """The whole, for rows without padding. The steps are methods, so that a mistake can replace one."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.multi_modal_projector = modeling_gemma.PaliGemmaMultiModalProjector(config)
        self.language_model = GemmaForCausalLM(config.text_config)

    def tie_weights(self):
        self.language_model.tie_weights()

    def image_part(self, image_features):
        """Divided here because the decoder multiplies everything by sqrt(D): pictures are to stay as they are."""
        return image_features / self.config.hidden_size**0.5

    def merged(self, embeddings, image_features, input_ids):
        is_image = input_ids == self.config.image_token_index
        return embeddings.masked_scatter(is_image[..., None], self.image_part(image_features))

    def positions(self, attention_mask, length: int):
        return attention_mask.cumsum(-1)[:, -length:]  # counted from 1

    def forward(self, input_ids=None, pixel_values=None, attention_mask=None, kv_cache=None, labels=None):
        B, L = input_ids.shape
        T = L + (0 if kv_cache is None else kv_cache.num_items())
        embeddings = self.language_model.get_input_embeddings()(input_ids)
        image_features = self.multi_modal_projector(self.vision_tower(pixel_values))
        embeddings = self.merged(embeddings, image_features, input_ids)
        mask = torch.zeros(B, 1, L, T)
        return self.language_model(mask, self.positions(attention_mask, L), embeddings, kv_cache)


def sample_top_p(probs, p: float):
    """One token of each row, drawn from the most likely ones that together reach p. [B, V] -> [B, 1]"""
    ordered, places = probs.sort(dim=-1, descending=True)
    kept = ordered.masked_fill(ordered.cumsum(-1) - ordered > p, 0.0)
    return places.gather(-1, torch.multinomial(kept / kept.sum(-1, keepdim=True), num_samples=1))


# What fills in for a part of this name; those of the video's form first.
STAND_INS = {
    **{
        name: getattr(modeling_siglip, name)
        for name in (
            "SiglipVisionConfig", "SiglipVisionEmbeddings", "SiglipAttention", "SiglipMLP", "SiglipEncoderLayer",
            "SiglipEncoder", "SiglipVisionTransformer", "SiglipVisionModel",
        )
    },
    **{
        name: getattr(processing_paligemma, name)
        for name in ("add_image_tokens_to_prompt", "resize", "rescale", "normalize", "process_images",
                     "PaliGemmaProcessor")
    },
    **{
        name: getattr(modeling_gemma, name)
        for name in ("GemmaRMSNorm", "rotate_half", "repeat_kv", "GemmaMLP", "PaliGemmaMultiModalProjector")
    },
    "KVCache": KVCache,
    "GemmaRotaryEmbedding": GemmaRotaryEmbedding,
    "apply_rotary_pos_emb": apply_rotary_pos_emb,
    "GemmaAttention": GemmaAttention,
    "GemmaDecoderLayer": GemmaDecoderLayer,
    "GemmaModel": GemmaModel,
    "GemmaForCausalLM": GemmaForCausalLM,
    "PaliGemmaForConditionalGeneration": PaliGemmaForConditionalGeneration,
    "sample_top_p": sample_top_p,
}  # fmt: skip


def stand_in_for(name: str, theirs):
    """The right part with the learner's own signature, to put in place of theirs inside the parts that use it."""
    right = STAND_INS[name]
    if theirs is None:
        return right
    if not isinstance(right, type):

        def function(*args, **kwargs):
            known = tuple(inspect.signature(right).parameters)
            return right(**calls.roles(theirs, args, kwargs, known))

        return function

    if not issubclass(right, nn.Module):
        return right

    class StandIn(right):
        def __init__(self, *args, **kwargs):
            known = tuple(inspect.signature(right).parameters)
            super().__init__(**calls.roles(theirs, args, kwargs, known))

        def forward(self, *args, **kwargs):
            if theirs.forward is nn.Module.forward:  # not written yet
                return right.forward(self, *args, **kwargs)
            known = tuple(inspect.signature(right.forward).parameters)[1:]
            return right.forward(self, **calls.roles(theirs.forward, (self, *args), kwargs, known))

    StandIn.__name__ = right.__name__
    return StandIn
