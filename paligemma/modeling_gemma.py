"""The decoder (Gemma) and the whole of PaliGemma: from image features and a prompt to the logits of the next token.

Read from top to bottom: configurations, small parts, the decoder, the projector, the mask rule, the whole model.

Shapes, everywhere in this file: B rows in a batch, N image tokens of a picture, L tokens fed in now, T tokens in all
(those in the cache and the L new ones), D width, H query heads, H_kv key/value heads, d head size, V vocabulary.

Sources: Beyer et al. 2024, "PaliGemma: A versatile 3B VLM for transfer" (section 3); Gemma Team 2024, "Gemma: Open
Models Based on Gemini Research and Technology" (section 2); big_vision/models/ppp/gemma.py and
big_vision/models/proj/paligemma/paligemma.py (official code). Names are those of transformers and the checkpoints.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from .config_checks import check_choice, check_number, check_object, check_whole, inside, known_fields
from .kv_cache import KVCache
from .modeling_siglip import GELU, SiglipVisionConfig, SiglipVisionModel


@dataclass
class GemmaConfig:
    """What the decoder needs to know about itself. Defaults: Gemma 2B as PaliGemma uses it.

    Raises ValueError for sizes that do not fit together.
    """

    vocab_size: int = 257216  # V: Gemma's 256,000, 1,024 <loc>, 128 <seg>, <image>, padded to a multiple of 64
    hidden_size: int = 2048  # D
    intermediate_size: int = 16384
    num_hidden_layers: int = 18
    num_attention_heads: int = 8  # H
    num_key_value_heads: int = 1  # H_kv
    head_dim: int = 256  # d; not in the published files, and not D / H in every size
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 8192  # the longest text in training; RoPE itself has no limit
    attention_bias: bool = False
    attention_dropout: float = 0.0
    model_type: str = "gemma"
    attention: str = "sdpa"  # "sdpa": torch's fused attention; "eager": readable, returns the weights

    def __post_init__(self):
        check_choice("attention", self.attention, ("sdpa", "eager"))
        check_choice("model_type", self.model_type, (type(self).model_type,))
        check_whole(self, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
        check_whole(self, "num_attention_heads", "num_key_value_heads", "max_position_embeddings")
        check_number(self, "rms_norm_eps", 1e-12, 0.01)
        check_number(self, "rope_theta", 1, 1e12)
        check_choice("attention_bias", self.attention_bias, (False,))  # published under these names and values;
        check_choice("attention_dropout", self.attention_dropout, (0.0,))  # nothing here has biases or drops weights
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} key/value heads "
                "evenly: num_attention_heads must be a multiple of num_key_value_heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, expected an even number: RoPE turns pairs of numbers")

    @classmethod
    def from_dict(cls, values: dict) -> "GemmaConfig":
        """From the `text_config` of a published config.json; keys that mean nothing here are ignored."""
        # "gelu" in the first published files means the tanh form, too: see transformers' notes on Gemma's activation.
        check_choice("hidden_act", values.get("hidden_act") or GELU[0], (*GELU, "gelu"))
        check_choice("hidden_activation", values.get("hidden_activation") or GELU[0], GELU)
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}  # where newer files keep rope_theta
        check_object("rope_parameters", rope)
        check_choice("rope_type", rope.get("rope_type", rope.get("type", "default")), ("default",))
        if "rope_theta" in rope and "rope_theta" in values:
            check_choice("rope_theta", rope["rope_theta"], (values["rope_theta"],))
        return cls(**known_fields(cls, {**rope, **values}))


class GemmaRMSNorm(nn.Module):
    """Divide each token by its root mean square, then scale each feature. [..., D] -> [..., D]

    Zhang & Sennrich 2019, "Root Mean Square Layer Normalization". Two things are Gemma's own: the scale is 1 + weight
    (so weights start at zero), and it is applied in float32, before the cast back
    (https://github.com/huggingface/transformers/pull/29402 found both to matter).
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x32 = x.float()  # bfloat16 has 8 significant bits, too few for a mean of squares
        normed = x32 * torch.rsqrt(x32.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).type_as(x)


class GemmaRotaryEmbedding(nn.Module):
    """The angles of RoPE: positions [B, L] -> cos and sin, each [B, L, d], in the dtype of `x`.

    Su et al. 2021, "RoFormer", section 3.2.2: pair i turns by position * theta^(-2i/d). Feature i is paired with
    feature i + d/2 ("halves"), so the d/2 angles are repeated once, end to end.
    """

    def __init__(self, dim: int, base: float = 10000.0):
        super().__init__()
        self.dim, self.base = dim, base

    def inv_freq(self, device=None) -> torch.Tensor:
        """theta^(-2i/d), float32 [d/2]. Not a buffer: model.to(torch.bfloat16) would round it, and so the angles."""
        return 1.0 / self.base ** (torch.arange(0, self.dim, 2, device=device).float() / self.dim)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq(position_ids.device)  # [B, L, d/2]
        angles = torch.cat([angles, angles], dim=-1)  # [B, L, d]
        return angles.cos().type_as(x), angles.sin().type_as(x)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """A quarter turn of every pair (i, i + d/2): (a, b) -> (-b, a). [..., d] -> [..., d]"""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def apply_rotary_pos_emb(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn queries [B, H, L, d] and keys [B, H_kv, L, d] by their positions' angles (cos, sin [B, L, d])."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [B, 1, L, d]: the same for every head
    return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin


class GemmaMLP(nn.Module):
    """Gated MLP ("GeGLU", Shazeer 2020, "GLU Variants Improve Transformer"). [B, L, D] -> [B, L, D]"""

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = F.gelu(self.gate_proj(x), approximate="tanh")  # how much of each feature to let through
        return self.down_proj(gate * self.up_proj(x))


def repeat_kv(hidden_states: torch.Tensor, n_rep: int) -> torch.Tensor:
    """Give each key/value head to the n_rep query heads that share it. [B, H_kv, T, d] -> [B, H_kv * n_rep, T, d]

    Each head is repeated in its place: with n_rep = 2, heads [K1, K2] become [K1, K1, K2, K2].
    """
    return hidden_states.repeat_interleave(n_rep, dim=1)


class GemmaAttention(nn.Module):
    r"""Grouped-query attention with rotary positions and a cache (Ainslie et al. 2023, "GQA").

    hidden_states [B, L, D] -> ([B, L, D], weights [B, H, L, T], or None with sdpa). `attention_mask` is added to the
    scores: [B, 1, L, T], 0 where a query may look and a huge negative number where not. None: every query sees every
    key.

    Query heads Q share the key/value heads K below them; fewer of these make a smaller cache:

        multi-head (H_kv = H)    grouped-query (H_kv = H / 2)    multi-query (H_kv = 1)
        Q   Q   Q   Q            Q   Q   Q   Q                   Q   Q   Q   Q
        |   |   |   |             \ /     \ /                     \  \ /  /
        K   K   K   K              K       K                          K
    """

    def __init__(self, config: GemmaConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.head_dim = config.head_dim
        self.scale = self.head_dim**-0.5
        self.attention = config.attention
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def attend(self, query, key, value, attention_mask):
        """query [B, H, L, d], key and value [B, H_kv, T, d] -> ([B, H, L, d], weights or None)"""
        if self.attention == "eager":
            return self.attend_eager(query, key, value, attention_mask)
        output = F.scaled_dot_product_attention(  # enable_gqa: heads share keys without copies of them
            query, key, value, attn_mask=attention_mask, scale=self.scale, enable_gqa=True
        )
        return output, None

    def attend_eager(self, query, key, value, attention_mask):
        """The same step by step, with the weights [B, H, L, T]."""
        key = repeat_kv(key, self.num_key_value_groups)  # [B, H, T, d]
        value = repeat_kv(value, self.num_key_value_groups)  # [B, H, T, d]
        scores = self.cap(query @ key.transpose(2, 3) * self.scale)  # [B, H, L, T]
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)  # rows sum to 1
        return weights @ value, weights

    def cap(self, scores: torch.Tensor) -> torch.Tensor:
        """Gemma leaves the scores as they are; Gemma 2 caps them."""
        return scores

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        kv_cache: KVCache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        B, L, _ = hidden_states.shape
        query = self.q_proj(hidden_states).view(B, L, self.num_heads, self.head_dim).transpose(1, 2)
        key = self.k_proj(hidden_states).view(B, L, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        value = self.v_proj(hidden_states).view(B, L, self.num_key_value_heads, self.head_dim).transpose(1, 2)

        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)  # [B, H, L, d], [B, H_kv, L, d]
        if kv_cache is not None:  # keys are kept turned: a token's position never changes
            key, value = kv_cache.update(key, value, self.layer_idx)  # [B, H_kv, T, d]

        output, weights = self.attend(query, key, value, attention_mask)
        return self.o_proj(output.transpose(1, 2).flatten(2)), weights  # heads side by side, then mixed


class GemmaDecoderLayer(nn.Module):
    """Attention, then MLP, each on a normalised copy and added to what came in. [B, L, D] -> [B, L, D]

    `post_attention_layernorm` is the norm before the MLP: it comes after the attention, hence the name. (In Gemma 2
    the same name means something else: see modeling_gemma2.py.)
    """

    attention_class = GemmaAttention

    def __init__(self, config: GemmaConfig, layer_idx: int):
        super().__init__()
        self.self_attn = self.attention_class(config, layer_idx)
        self.mlp = GemmaMLP(config)
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None) -> torch.Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), position_embeddings, attention_mask, kv_cache)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def make_attn_mask(
    input_mask: torch.Tensor, mask_ar: torch.Tensor, num_queries: int | None = None, window: int | None = None
) -> torch.Tensor:
    """Who may look at whom: every mask of this project, by the official rule (make_attn_mask in paligemma.py).

    input_mask [B, T]: 1 for a token, 0 for padding. mask_ar [B, T]: 1 where a token starts a new step that those
    before it must not see. A query sees a key when the key's step is not later than its own:

        mask_ar 1 1 1 1 1 1   causal: each token is a step of its own
        mask_ar 0 0 0 0 0 0   full: one step, all see all
        mask_ar 0 0 0 1 1 1   prefix-LM: picture and prompt see each other, the answer is causal

    With `window`, a query sees only keys less than `window` places back, or of its own step (Gemma 2). Returns bool
    [B, L, T] for the last L = num_queries tokens (all by default). Padding is seen by nobody.
    """
    T = mask_ar.shape[1]
    L = T if num_queries is None else num_queries
    step = mask_ar.cumsum(dim=-1)  # [B, T]
    key_step, query_step = step[:, None, :], step[:, T - L :, None]  # [B, 1, T], [B, L, 1]
    allowed = (key_step <= query_step) & input_mask[:, None, :].bool()  # [B, L, T]
    if window is not None:
        place = torch.arange(T, device=step.device)  # [T]
        near = place[T - L :, None] - place < window  # [L, T]
        allowed = allowed & (near | (key_step == query_step))
    return allowed


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """True / False [B, L, T] to what is added to the scores, [B, 1, L, T]: 0, or the lowest finite number.

    The lowest finite number and not minus infinity: a row that may see nothing (a padding token's) then averages
    everything instead of dividing zero by zero. Its output is never read: every real query is kept from padding.
    """
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min).unsqueeze(1)


class GemmaModel(nn.Module):
    """The decoder without its head: embeddings in, the last layer's normalised states out. [B, L, D] -> [B, L, D]

    `attention_mask` and `token_type_ids` [B, T] are the two arguments of `make_attn_mask`: which tokens are real, and
    which belong to the answer; T counts the cache's tokens too.
    """

    layer_class = GemmaDecoderLayer

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([self.layer_class(config, i) for i in range(config.num_hidden_layers)])
        self.norm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = GemmaRotaryEmbedding(config.head_dim, config.rope_theta)

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [B, L] to vectors [B, L, D], times sqrt(D).

        Rows of the table are small because the same table, tied, is the head; the factor brings them to the size
        of image features. It is rounded to the weights' dtype, as in training (bfloat16: 45.25 for 45.2548).
        """
        try:
            embeddings = self.embed_tokens(input_ids)
        except IndexError as error:
            raise ValueError(
                f"input_ids holds ids from {int(input_ids.min())} to {int(input_ids.max())}, expected 0 to "
                f"{self.embed_tokens.num_embeddings - 1}: the tokenizer has tokens that this model has no embedding for"
            ) from error
        return embeddings * torch.tensor(self.config.hidden_size**0.5, dtype=embeddings.dtype)

    def layer_masks(self, attention_mask, token_type_ids, num_queries: int, dtype) -> list[torch.Tensor]:
        """One additive mask [B, 1, L, T] for each layer: the same for all (Gemma 2 alternates two)."""
        mask = additive_mask(make_attn_mask(attention_mask, token_type_ids, num_queries), dtype)
        return [mask] * len(self.layers)

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        kv_cache: KVCache | None = None,
    ) -> torch.Tensor:
        hidden_states, L = inputs_embeds, inputs_embeds.shape[1]
        # Positions count the real tokens from 1, so padding on either side changes nothing.
        position_ids = attention_mask.cumsum(dim=-1).clamp(min=1)[:, -L:]  # [B, L]
        position_embeddings = self.rotary_emb(hidden_states, position_ids)  # once, for all layers
        masks = self.layer_masks(attention_mask, token_type_ids, L, hidden_states.dtype)
        for layer, mask in zip(self.layers, masks, strict=True):
            hidden_states = layer(hidden_states, position_embeddings, mask, kv_cache)
        if kv_cache is not None:
            kv_cache.advance(L)
        return self.norm(hidden_states)


class GemmaForCausalLM(nn.Module):
    """The decoder with its head. The head is the embedding table again, transposed ("tied"): it has no weights."""

    model_class = GemmaModel

    def __init__(self, config: GemmaConfig):
        super().__init__()
        self.config = config
        self.model = self.model_class(config)

    def lm_head(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """How well each row of the embedding table matches each state. [B, L, D] -> logits [B, L, V]"""
        return F.linear(hidden_states, self.model.embed_tokens.weight)

    def forward(self, inputs_embeds, attention_mask, token_type_ids, kv_cache=None) -> torch.Tensor:
        return self.lm_head(self.model(inputs_embeds, attention_mask, token_type_ids, kv_cache))


# The decoders that a PaliGemma may have, by `model_type`. modeling_gemma2.py, which builds on this file, adds its own.
DECODERS = {"gemma": (GemmaConfig, GemmaForCausalLM)}


@dataclass
class PaliGemmaConfig:
    """The two halves and what joins them.

    `projection_dim` (the width that image features are mapped to) is the decoder's width. Raises ValueError for
    sizes that do not fit together.
    """

    vision_config: SiglipVisionConfig = field(default_factory=SiglipVisionConfig)
    text_config: GemmaConfig = field(default_factory=GemmaConfig)
    image_token_index: int = 257152  # the id of <image>, where image features go
    projection_dim: int | None = None
    pad_token_id: int = 0
    bos_token_id: int = 2
    eos_token_id: int = 1
    ignore_index: int = -100  # the label of a token that takes no part in the loss

    def __post_init__(self):
        check_whole(self, "image_token_index", "pad_token_id", "bos_token_id", "eos_token_id", least=0)
        check_choice("ignore_index", self.ignore_index, (-100,))
        if self.projection_dim is None:
            self.projection_dim = self.text_config.hidden_size
        if self.projection_dim != self.text_config.hidden_size:
            raise ValueError(
                f"projection_dim {self.projection_dim} is not the decoder's hidden_size "
                f"{self.text_config.hidden_size}: image features and text must have one width"
            )

    @property
    def hidden_size(self) -> int:
        """The decoder's width D, which published files repeat here."""
        return self.text_config.hidden_size

    @property
    def vocab_size(self) -> int:
        """Rows of the decoder's embedding table, V."""
        return self.text_config.vocab_size

    @classmethod
    def from_dict(cls, values: dict, attention: str = "sdpa") -> "PaliGemmaConfig":
        """From a published config.json, read as it is. `attention` sets both halves.

        Raises ValueError, with the key's name, for another architecture and for impossible values.
        """
        check_choice("attention", attention, ("sdpa", "eager"))
        model_type = values.get("model_type", "paligemma")
        if model_type != "paligemma" or not {"vision_config", "text_config"} <= set(values):
            raise ValueError(
                f"this is the configuration of a {values.get('model_type', 'model of unknown type')!r}, not of "
                "PaliGemma: expected model_type 'paligemma' with a vision_config and a text_config"
            )
        with inside("vision_config"):
            check_object("it", values["vision_config"])
            vision_config = SiglipVisionConfig.from_dict(values["vision_config"])
        with inside("text_config"):
            check_object("it", values["text_config"])
            decoder = values["text_config"].get("model_type", "gemma")
            check_choice("model_type", decoder, tuple(DECODERS))
            config_class, _ = DECODERS[decoder]
            text_config = config_class.from_dict(values["text_config"])
        vision_config.attention = text_config.attention = attention
        # Absent token ids take their published values; a text_config may carry them too, which means the same.
        return cls(**{**known_fields(cls, values), "vision_config": vision_config, "text_config": text_config})


class PaliGemmaMultiModalProjector(nn.Module):
    """From the image encoder's width to the decoder's: one linear map. [B, N, D_image] -> [B, N, D]"""

    def __init__(self, config: PaliGemmaConfig):
        super().__init__()
        self.linear = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=True)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        return self.linear(image_features)


@dataclass
class PaliGemmaOutput:
    """logits [B, L, V] (L = 1 with `logits_to_keep=1`); loss, a scalar, with labels; kv_cache, when one was passed."""

    logits: torch.Tensor
    loss: torch.Tensor | None = None
    kv_cache: KVCache | None = None


class PaliGemmaForConditionalGeneration(nn.Module):
    """A picture and a prompt in, the logits of the next token out. Beyer et al. 2024, figure 1.

    The names of its parameters are those of the published checkpoints.
    """

    def __init__(self, config: PaliGemmaConfig):
        super().__init__()
        self.config = config
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.multi_modal_projector = PaliGemmaMultiModalProjector(config)
        _, decoder_class = DECODERS[config.text_config.model_type]
        self.language_model = decoder_class(config.text_config)

    @property
    def device(self) -> torch.device:
        return self.language_model.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.model.embed_tokens.weight.dtype

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode and project pictures: [B, C, height, width] -> image features [B, N, D], not multiplied by sqrt(D)."""
        return self.multi_modal_projector(self.vision_tower(pixel_values))

    def _merge_input_ids_with_image_features(self, input_ids, image_features) -> torch.Tensor:
        """The embedded prompt with each <image> token's vector replaced by a patch's. [B, L], [B', N, D] -> [B, L, D]

        Image features fill the <image> places in order, so a row may hold several pictures. Text is multiplied by
        sqrt(D), pictures are not. (Published PyTorch code divides the pictures by sqrt(D) only because it multiplies
        everything by it later.) Raises ValueError when places and features differ in number.
        """
        is_image = input_ids == self.config.image_token_index  # [B, L]
        places, features = int(is_image.sum()), image_features.shape[0] * image_features.shape[1]
        if places != features:
            raise ValueError(
                f"the prompts hold {places} <image> tokens and the pictures give {features} features: each picture "
                f"needs {image_features.shape[1]} <image> tokens (build the prompt with this model's processor)"
            )
        # <image> may lie outside the embedding table (some checkpoints): embed token 0 there, it is replaced anyway.
        embeddings = self.language_model.model.embed(input_ids.masked_fill(is_image, 0))  # [B, L, D]
        return embeddings.masked_scatter(is_image[..., None], image_features.to(embeddings.dtype))

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        kv_cache: KVCache | None = None,
        image_features: torch.Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> PaliGemmaOutput:
        """
        input_ids [B, L] int64; pixel_values [B, C, height, width] float, or image_features [B, N, D] to use again;
        attention_mask [B, T] (1 token, 0 padding; all ones by default) and token_type_ids [B, T] (0 picture and
        prompt, 1 answer; all zeros by default), where T counts the cache's tokens too; labels [B, L] (-100: no
        loss); logits_to_keep: how many positions from the end get logits (0: all).

        The loss is the mean over all tokens of the batch that have a label, each predicted from the tokens before
        it, in float32. Raises ValueError for shapes that do not fit one another, for a negative logits_to_keep, and
        for labels without token_type_ids (the answer would be visible to the prompt, and training would learn to
        copy).
        """
        if input_ids.ndim != 2:
            raise ValueError(
                f"input_ids has shape {list(input_ids.shape)}, expected [B, L], a row for each prompt: ids[None] makes "
                "a batch of one prompt"
            )
        if logits_to_keep < 0:
            raise ValueError(f"logits_to_keep is {logits_to_keep}, expected 0 (all positions) or a number from the end")
        B, L = input_ids.shape
        T = L if kv_cache is None else kv_cache.length + L
        if attention_mask is None:
            attention_mask = torch.ones(B, T, dtype=torch.int64, device=input_ids.device)
        if token_type_ids is None:
            if labels is not None:
                raise ValueError(
                    "labels came without token_type_ids: pass those that the processor returns with suffix=..., "
                    "they say where the answer begins"
                )
            token_type_ids = torch.zeros(B, T, dtype=torch.int64, device=input_ids.device)
        for name, tensor in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if tuple(tensor.shape) != (B, T):
                raise ValueError(
                    f"{name} has shape {list(tensor.shape)}, expected [{B}, {T}]: one entry for each of the {L} "
                    f"tokens fed in and the {T - L} in the cache"
                )

        if image_features is None and pixel_values is not None:
            image_features = self.get_image_features(pixel_values)
        if image_features is None:
            inputs_embeds = self.language_model.model.embed(input_ids)  # [B, L, D]: text alone
        else:
            inputs_embeds = self._merge_input_ids_with_image_features(input_ids, image_features)  # [B, L, D]

        hidden_states = self.language_model.model(inputs_embeds, attention_mask, token_type_ids, kv_cache)  # [B, L, D]
        logits = self.language_model.lm_head(hidden_states[:, -logits_to_keep:])  # [B, L, V]; [-0:] keeps all

        loss = None
        if labels is not None:
            loss = suffix_loss(logits, labels)
        return PaliGemmaOutput(logits=logits, loss=loss, kv_cache=kv_cache)


def suffix_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the labelled tokens, mean over the batch. logits [B, L, V], labels [B, L] -> scalar

    The logits at position t are a guess at token t + 1, hence the shift. Raises ValueError when no token has a label:
    the mean of nothing would be NaN, and one step with it ruins every weight.
    """
    if logits.shape[:2] != labels.shape:
        raise ValueError(
            f"labels has shape {list(labels.shape)}, the logits are for {list(logits.shape[:2])}: leave "
            "logits_to_keep at 0 while training"
        )
    if not (labels[:, 1:] != -100).any():
        raise ValueError("no token has a label (all are -100): give the processor a suffix to learn from")
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
