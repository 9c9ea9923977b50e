"""The keys and values of the tokens so far, kept so that each new token costs one step and not a whole sequence."""

import torch

from .config_checks import check_whole


class KVCache:
    """Keys and values of every layer, in two tensors that are allocated once and written in place.

    A cache that grows by concatenation copies all it holds at every token; this one writes one column. It holds
    `max_length` columns for `batch_size` rows; a column is a position of the padded batch, so prompts of unequal
    length are padded on the left and all rows write the same column.

    `config` is the decoder's (GemmaConfig): it gives the number of layers, the KV heads and the head size.
    Shapes: keys and values [layers, B, H_kv, max_length, d].
    """

    def __init__(self, config, batch_size: int, max_length: int, dtype: torch.dtype = torch.float32, device="cpu"):
        self.batch_size, self.max_length = batch_size, max_length
        check_whole(self, "batch_size", "max_length")
        shape = (
            config.num_hidden_layers,
            batch_size,
            config.num_key_value_heads,
            max_length,
            config.head_dim,
        )
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0  # columns written so far, the same for every layer once a forward pass is over

    def num_items(self) -> int:
        """How many tokens are held (columns, padding included)."""
        return self.length

    def nbytes(self) -> int:
        """Memory of the cache in bytes: 2 x layers x B x H_kv x max_length x d x bytes of a number."""
        return self.keys.nbytes + self.values.nbytes

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens' keys and values [B, H_kv, L, d] of one layer; return all so far [B, H_kv, T, d].

        What is returned are views of the cache: nothing is copied. All layers write the same columns; the model calls
        `advance` once, after the last. Raises ValueError when the batch differs or the cache is full.
        """
        batch_size, _, new_tokens, _ = key.shape
        if batch_size != self.batch_size:
            raise ValueError(f"the cache was made for {self.batch_size} rows, this batch has {batch_size}")
        end = self.length + new_tokens
        if end > self.max_length:
            raise ValueError(
                f"the cache holds {self.max_length} tokens; {self.length} are in it and {new_tokens} more do not "
                "fit: make it with a larger max_length (prompt + new tokens)"
            )
        self.keys[layer_idx, :, :, self.length : end] = key
        self.values[layer_idx, :, :, self.length : end] = value
        return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]

    def advance(self, new_tokens: int) -> None:
        """Count the tokens that every layer has now written. Called once a forward pass, by the model."""
        self.length += new_tokens

    def reset(self) -> None:
        """Forget everything and keep the memory, for the next prompt."""
        self.length = 0
