"""What Gemma 2 changes, for PaliGemma 2: soft-capped scores and logits, four norms a layer, alternating windows.

Sources: Gemma Team 2024, "Gemma 2: Improving Open Language Models at a Practical Size" (section 2); Steiner et al.
2024, "PaliGemma 2"; transformers' modeling_gemma2.py. Google's own PaliGemma 2 code (big_vision, models/ppp/gemma.py)
leaves the windows out, which matters only for sequences of more than 4,096 tokens, that is at 896 pixels.
"""

import reprlib
from dataclasses import dataclass

import torch

from .config_checks import check_choice, check_number, check_whole
from .modeling_gemma import (
    DECODERS,
    GemmaAttention,
    GemmaConfig,
    GemmaDecoderLayer,
    GemmaForCausalLM,
    GemmaModel,
    GemmaRMSNorm,
    additive_mask,
    make_attn_mask,
)


@dataclass
class Gemma2Config(GemmaConfig):
    """Defaults: Gemma 2 2B as PaliGemma 2 3B uses it."""

    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_key_value_heads: int = 4
    model_type: str = "gemma2"
    query_pre_attn_scalar: float = 256  # scores are divided by its root; in the 28B model it is not the head size
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0
    sliding_window: int | None = 4096
    layer_types: list | None = None  # "sliding_attention" or "full_attention", one for each layer

    def __post_init__(self):
        super().__post_init__()
        check_number(self, "query_pre_attn_scalar", 1, 1e6)
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if getattr(self, name) is not None:
                check_number(self, name, 1e-3, 1e6)
        if self.sliding_window is not None:
            check_whole(self, "sliding_window")
        if self.layer_types is None:
            self.layer_types = [
                "full_attention" if i % 2 else "sliding_attention" for i in range(self.num_hidden_layers)
            ]
        if not isinstance(self.layer_types, list) or len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types is {reprlib.repr(self.layer_types)}, expected a list of num_hidden_layers = "
                f"{self.num_hidden_layers} names"
            )
        for layer_type in self.layer_types:
            check_choice("layer_types", layer_type, ("sliding_attention", "full_attention"))


def softcap(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Bend x smoothly into (-cap, cap); close to the identity for small x. (Gemma 2, section 2)"""
    return x if cap is None else cap * torch.tanh(x / cap)


class Gemma2Attention(GemmaAttention):
    """Scores are capped after the scaling and before the mask. torch's fused attention cannot do that, so there is
    one path for both settings of `attention`; it returns the weights in either."""

    def __init__(self, config: Gemma2Config, layer_idx: int):
        super().__init__(config, layer_idx)
        self.scale = config.query_pre_attn_scalar**-0.5

    def attend(self, query, key, value, attention_mask):
        return self.attend_eager(query, key, value, attention_mask)

    def cap(self, scores: torch.Tensor) -> torch.Tensor:
        return softcap(scores, self.config.attn_logit_softcapping)


class Gemma2DecoderLayer(GemmaDecoderLayer):
    """Each part has a norm before and one after, inside the residual.

    `post_attention_layernorm` normalises the attention's output here; in Gemma 1 the same name is the norm before the
    MLP, which is now `pre_feedforward_layernorm`.
    """

    attention_class = Gemma2Attention

    def __init__(self, config: Gemma2Config, layer_idx: int):
        super().__init__(config, layer_idx)
        self.pre_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None) -> torch.Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), position_embeddings, attention_mask, kv_cache)
        hidden_states = hidden_states + self.post_attention_layernorm(attended)
        transformed = self.mlp(self.pre_feedforward_layernorm(hidden_states))
        return hidden_states + self.post_feedforward_layernorm(transformed)


class Gemma2Model(GemmaModel):
    """Every second layer looks back only `sliding_window` tokens; picture and prompt still see each other whole."""

    layer_class = Gemma2DecoderLayer

    def layer_masks(self, attention_mask, token_type_ids, num_queries: int, dtype) -> list[torch.Tensor]:
        masks = {
            kind: additive_mask(make_attn_mask(attention_mask, token_type_ids, num_queries, window), dtype)
            for kind, window in (("full_attention", None), ("sliding_attention", self.config.sliding_window))
        }
        return [masks[kind] for kind in self.config.layer_types]


class Gemma2ForCausalLM(GemmaForCausalLM):
    """The logits are capped too. That keeps their order, so greedy decoding is the same without; losses are not."""

    model_class = Gemma2Model

    def lm_head(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return softcap(super().lm_head(hidden_states), self.config.final_logit_softcapping)


DECODERS["gemma2"] = (Gemma2Config, Gemma2ForCausalLM)
