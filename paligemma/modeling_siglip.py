"""The image encoder of PaliGemma: SigLIP, a vision transformer, from pixels to one vector per patch.

Read from top to bottom: the configuration, then the parts from the smallest (patch embedding) to the whole.

Shapes, everywhere in this file: B pictures in a batch, C colour channels, N patches of a picture ("image tokens"),
D width of a token, H attention heads, d = D / H width of a head.

Sources: Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words" (sections 3.1, D.1: the vision transformer);
Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (SigLIP); big_vision/models/vit.py (official code).
Class and parameter names are those of transformers' modeling_siglip.py and of the published checkpoints.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .config_checks import check_choice, check_number, check_whole, known_fields

GELU = ("gelu_pytorch_tanh", "gelu_new")  # the tanh form, under its two names in published files


@dataclass
class SiglipVisionConfig:
    """Sizes and settings of the image encoder. Defaults: SigLIP base/16 at 224 pixels.

    PaliGemma's own encoder is So400m/14: hidden_size 1152, intermediate_size 4304, 27 layers, 16 heads, patch_size 14.

    Raises ValueError for sizes that do not fit together.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224  # side of the square picture, in pixels
    patch_size: int = 16  # side of a square patch, in pixels
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    num_image_tokens: int | None = None  # N; follows from the two sizes above when absent
    attention: str = "sdpa"  # "sdpa": torch's fused attention; "eager": readable, returns the weights

    def __post_init__(self):
        check_choice("attention", self.attention, ("sdpa", "eager"))
        check_whole(self, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        check_whole(self, "num_channels", "image_size", "patch_size")
        check_number(self, "layer_norm_eps", 1e-12, 0.01)
        check_number(self, "attention_dropout", 0, 0.99)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} cannot be shared out among {self.num_attention_heads} attention "
                "heads: choose sizes that divide evenly"
            )
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than one patch ({self.patch_size} pixels)")
        patches = (self.image_size // self.patch_size) ** 2
        if self.num_image_tokens is not None and self.num_image_tokens != patches:
            raise ValueError(
                f"num_image_tokens is {self.num_image_tokens}, but {self.image_size} pixels in patches of "
                f"{self.patch_size} make {patches}: leave it out, or correct image_size or patch_size"
            )
        self.num_image_tokens = patches

    @classmethod
    def from_dict(cls, values: dict) -> "SiglipVisionConfig":
        """From the `vision_config` of a published config.json; keys that mean nothing here are ignored."""
        check_choice("model_type", values.get("model_type", "siglip_vision_model"), ("siglip_vision_model",))
        check_choice("hidden_act", values.get("hidden_act") or GELU[0], GELU)
        # Published PaliGemma files carry num_image_tokens of 224 pixels even at other sizes: it is derived anew.
        return cls(**known_fields(cls, values, leave_out=("num_image_tokens",)))


class SiglipVisionEmbeddings(nn.Module):
    """Cut the picture into patches, map each to a vector, add its position. [B, C, height, width] -> [B, N, D]

    A convolution whose stride equals its kernel is a linear map of each patch, all patches with the same weights
    (Dosovitskiy et al. 2020, equation 1). Patches count row by row from the top left: token r * W + c.
    """

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
            padding="valid",
        )
        self.num_patches = config.num_image_tokens
        self.position_embedding = nn.Embedding(self.num_patches, config.hidden_size)
        # On the CPU even when the model is built on torch's "meta" device: it is not stored in checkpoints.
        position_ids = torch.arange(self.num_patches, device="cpu").expand((1, -1))  # [1, N]
        self.register_buffer("position_ids", position_ids, persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"pixel_values has shape {list(pixel_values.shape)}, expected [B, {', '.join(map(str, expected))}]: "
                "pass pictures through the processor of this model (channels first, resized)"
            )
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))  # [B, D, rows, columns]
        embeddings = patches.flatten(2).transpose(1, 2)  # [B, N, D]
        return embeddings + self.position_embedding(self.position_ids)


class SiglipAttention(nn.Module):
    """Every patch looks at every patch. [B, N, D] -> ([B, N, D], weights [B, H, N, N], or None with sdpa)

    Vaswani et al. 2017, section 3.2. No mask: a picture has no order in which it must be read.
    """

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scale = self.head_dim**-0.5  # keeps scores of unit variance, so that the softmax does not saturate
        self.attention = config.attention
        self.dropout = config.attention_dropout
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        batch_size, num_patches, _ = states.shape
        return states.view(batch_size, num_patches, self.num_heads, self.head_dim).transpose(1, 2)  # [B, H, N, d]

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self.split_heads(self.q_proj(hidden_states))  # [B, H, N, d]
        key = self.split_heads(self.k_proj(hidden_states))  # [B, H, N, d]
        value = self.split_heads(self.v_proj(hidden_states))  # [B, H, N, d]
        dropout = self.dropout if self.training else 0.0

        if self.attention == "eager":
            scores = query @ key.transpose(2, 3) * self.scale  # [B, H, N, N]
            weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)  # rows sum to 1
            output = F.dropout(weights, p=dropout) @ value  # [B, H, N, d]
        else:
            weights = None
            output = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=self.scale)

        output = output.transpose(1, 2).flatten(2)  # [B, N, H, d] -> [B, N, D]: the heads side by side again
        return self.out_proj(output), weights


class SiglipMLP(nn.Module):
    """For each token alone: expand, GELU, project back. [B, N, D] -> [B, N, D]"""

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # The tanh form of GELU, as in the official JAX code: it differs from the exact one by up to 5e-4.
        return self.fc2(F.gelu(self.fc1(hidden_states), approximate="tanh"))


class SiglipEncoderLayer(nn.Module):
    """Attention between tokens, then an MLP on each, both added to what came in. [B, N, D] -> [B, N, D]

    Normalised before each part and not after ("pre-norm"), so the residual stream itself is never normalised.
    """

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SiglipMLP(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        attended, _ = self.self_attn(self.layer_norm1(hidden_states))
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class SiglipEncoder(nn.Module):
    """The stack of layers. [B, N, D] -> [B, N, D]"""

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.layers = nn.ModuleList([SiglipEncoderLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


class SiglipVisionTransformer(nn.Module):
    """Patches, layers, one last norm. pixel_values [B, C, height, width] -> [B, N, D]"""

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.config = config
        self.embeddings = SiglipVisionEmbeddings(config)
        self.encoder = SiglipEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.post_layernorm(self.encoder(self.embeddings(pixel_values)))


class SiglipVisionModel(nn.Module):
    """The image encoder as PaliGemma uses it: all N patch vectors, no class token, no pooling.

    Takes pixel_values [B, C, height, width] with values from -1 to 1, returns [B, N, D] in the dtype of the weights.
    Raises ValueError when the pictures are not of the configured size.
    """

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        self.config = config
        self.vision_model = SiglipVisionTransformer(config)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.vision_model(pixel_values)
