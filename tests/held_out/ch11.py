"""Held-out solutions of chapter 11."""

# ruff: noqa: E501
# fmt: off

from . import change, right, wrong

# --- 11.1 -------------------------------------------------------------------------------------------------------------

wrong("11.1", "divides afterwards", """
def probabilities(logits, temperature):
    return torch.softmax(logits, dim=-1) / temperature
""", truth="divides the probabilities by the temperature, not the logits")
wrong("11.1", "multiplies", """
def probabilities(logits, temperature):
    return torch.softmax(logits * temperature, dim=-1)
""", truth="multiplies the logits by the temperature instead of dividing")
wrong("11.1", "over the batch", """
def probabilities(logits, temperature):
    return torch.softmax(logits / temperature, dim=0)
""", truth="the softmax is over the rows of the batch, not the vocabulary")
wrong("11.1", "exp overflows", """
def probabilities(logits, temperature):
    e = torch.exp(logits / temperature)
    return e / e.sum(dim=-1, keepdim=True)
""", truth="exp of large logits overflows: the largest must be subtracted first")
wrong("11.1", "largest of the batch", """
def probabilities(logits, temperature):
    z = logits / temperature
    e = torch.exp(z - z.max())
    return e / e.sum(dim=-1, keepdim=True)
""", truth="subtracts the largest of the whole batch: other rows underflow to 0 / 0")
wrong("11.1", "power not divided by its sum", """
def probabilities(logits, temperature):
    return torch.softmax(logits, dim=-1) ** (1 / temperature)
""", truth="probabilities to the power 1/T no longer sum to 1")
wrong("11.1", "power of underflowed numbers", """
def probabilities(logits, temperature):
    p = torch.softmax(logits, dim=-1) ** (1 / temperature)
    return p / p.sum(dim=-1, keepdim=True)
""", truth="the softmax comes first, so unlikely tokens have underflowed to 0 before the power")
wrong("11.1", "divides in place", """
def probabilities(logits, temperature):
    logits /= temperature
    return logits.softmax(dim=-1)
""", truth="changes the logits that were given", says="writes into the caller's data")
wrong("11.1", "log-probabilities", """
def probabilities(logits, temperature):
    return torch.log_softmax(logits / temperature, dim=-1)
""", truth="returns logarithms of probabilities")
wrong("11.1", "no temperature", """
def probabilities(logits, temperature):
    return torch.softmax(logits, dim=-1)
""", truth="the temperature is not used")
wrong("11.1", "sum of the batch", """
def probabilities(logits, temperature):
    z = logits / temperature
    e = torch.exp(z - z.amax(dim=-1, keepdim=True))
    return e / e.sum()
""", truth="divides by the sum over the whole batch: rows do not sum to 1")
right("11.1", "numpy round trip", """
def probabilities(logits, temperature):
    import numpy as np
    z = logits.double().numpy() / temperature
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return torch.from_numpy(e / e.sum(axis=1, keepdims=True)).to(logits.dtype)
""")

# --- 11.2 -------------------------------------------------------------------------------------------------------------

NUCLEUS = """
def keep_nucleus(p, top_p):
    values, order = p.sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values
    values = values.masked_fill(before >= top_p, 0.0)
    kept = torch.zeros_like(p).scatter(1, order, values)
    return kept / kept.sum(dim=-1, keepdim=True)
"""
change("11.2", "sum includes the token itself", NUCLEUS, ("values.cumsum(dim=-1) - values", "values.cumsum(dim=-1)"), ("before >= top_p", "before > top_p"), truth="the sum includes the token itself, so the one that crosses the line is dropped")
change("11.2", "greater instead of greater or equal", NUCLEUS, ("before >= top_p", "before > top_p"), truth="a token before which there is exactly top_p is kept: it must have less than top_p before it")
change("11.2", "not back in order", NUCLEUS, ("kept = torch.zeros_like(p).scatter(1, order, values)", "kept = values"), truth="the result is in sorted order, not in the vocabulary's")
change("11.2", "gather for the way back", NUCLEUS, ("torch.zeros_like(p).scatter(1, order, values)", "values.gather(1, order)"), truth="gather with order is not the way back: it needs scatter (the inverse order)")
change("11.2", "not divided", NUCLEUS, ("return kept / kept.sum(dim=-1, keepdim=True)", "return kept"), truth="what is kept is not divided by its sum")
change("11.2", "divided by top_p", NUCLEUS, ("kept.sum(dim=-1, keepdim=True)", "top_p"), truth="divides by top_p instead of the sum of what is kept")
change("11.2", "divided by the batch's sum", NUCLEUS, ("kept.sum(dim=-1, keepdim=True)", "kept.sum()"), truth="divides by the sum over the whole batch")
change("11.2", "from the least likely", NUCLEUS, ("descending=True", "descending=False"), truth="sorted from the least likely up")
change("11.2", "softmax again", NUCLEUS, ("return kept / kept.sum(dim=-1, keepdim=True)", "return kept.softmax(dim=-1)"), truth="renormalises with a softmax instead of dividing by the sum")
change("11.2", "one count for all rows", NUCLEUS, ("values = values.masked_fill(before >= top_p, 0.0)", "values[:, int((before[0] < top_p).sum()) :] = 0"), truth="the number of tokens kept in row 0 is used for every row")
wrong("11.2", "threshold on each probability", """
def keep_nucleus(p, top_p):
    kept = torch.where(p >= 1 - top_p, p, torch.zeros_like(p))
    return kept / kept.sum(dim=-1, keepdim=True)
""", truth="keeps tokens by a threshold on their own probability, not by what is before them")
wrong("11.2", "stops after crossing, one more", """
def keep_nucleus(p, top_p):
    kept = torch.zeros_like(p)
    for b in range(len(p)):
        total = 0.0
        for i in p[b].argsort(descending=True).tolist():
            kept[b, i] = p[b, i]
            if total >= top_p:
                break
            total += float(p[b, i])
    return kept / kept.sum(dim=-1, keepdim=True)
""", truth="one token too many is kept: the loop stops one token after the line is crossed")
wrong("11.2", "writes into p", """
def keep_nucleus(p, top_p):
    values, order = p.sort(dim=-1, descending=True)
    drop = values.cumsum(dim=-1) - values >= top_p
    p[torch.zeros_like(drop).scatter(1, order, drop)] = 0
    return p / p.sum(dim=-1, keepdim=True)
""", truth="changes the probabilities that were given", says="writes into the caller's data")
right("11.2", "loop over rows", """
def keep_nucleus(p, top_p):
    rows = []
    for row in p:
        kept, before = torch.zeros_like(row), torch.zeros(())
        for i in torch.argsort(row, descending=True, stable=True):
            if before >= top_p:
                break
            kept[i] = row[i]
            before = before + row[i]
        rows.append(kept / kept.sum())
    return torch.stack(rows)
""")
right("11.2", "inverse permutation by argsort", """
def keep_nucleus(p, top_p):
    order = p.argsort(dim=1, descending=True)
    sorted_p = torch.take_along_dim(p, order, dim=1)
    before = torch.cat([torch.zeros(len(p), 1), sorted_p.cumsum(1)[:, :-1]], dim=1)
    keep = (before < top_p).gather(1, order.argsort(dim=1))
    kept = p * keep
    return torch.nn.functional.normalize(kept, p=1, dim=1)
""")

# --- 11.3 -------------------------------------------------------------------------------------------------------------

CACHE = """
class KVCache:
    def __init__(self, config, batch_size, max_length, dtype=torch.float32, device="cpu"):
        shape = (config.num_hidden_layers, batch_size, config.num_key_value_heads, max_length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def update(self, key, value, layer_idx):
        end = self.length + key.shape[2]
        self.keys[layer_idx, :, :, self.length:end] = key
        self.values[layer_idx, :, :, self.length:end] = value
        return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]

    def advance(self, new_tokens):
        self.length += new_tokens

    def crop(self, length):
        self.length = length
"""
change("11.3", "update moves length", CACHE, ("        return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]", "        self.length = end\n        return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]"), ("        self.length += new_tokens", "        pass"), truth="update moves length on, so the second layer writes behind the first")
change("11.3", "advance sets", CACHE, ("self.length += new_tokens", "self.length = new_tokens"), truth="advance sets length instead of adding")
change("11.3", "advance by one", CACHE, ("self.length += new_tokens", "self.length += 1"), truth="advance counts one token, however many are new")
change("11.3", "only the new ones returned", CACHE, ("[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]", "[layer_idx, :, :, self.length:end], self.values[layer_idx, :, :, self.length:end]"), truth="update returns only the new columns, not all so far", says="the new tokens alone")
change("11.3", "new ones not returned", CACHE, ("return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]", "return self.keys[layer_idx, :, :, :self.length], self.values[layer_idx, :, :, :self.length]"), truth="update returns only the old columns, without the new ones")
change("11.3", "everything returned", CACHE, ("return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]", "return self.keys[layer_idx], self.values[layer_idx]"), truth="update returns all the room, with the empty columns")
change("11.3", "copies returned", CACHE, ("return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]", "return self.keys[layer_idx, :, :, :end].clone(), self.values[layer_idx, :, :, :end].clone()"), truth="update returns copies instead of views")
change("11.3", "query heads", CACHE, ("config.num_key_value_heads", "config.num_attention_heads"), truth="room for all query heads instead of the key/value heads")
change("11.3", "dtype forgotten", CACHE, ("dtype=dtype, ", ""), truth="dtype is not passed to the tensors")
change("11.3", "values share the keys' memory", CACHE, ("self.values = torch.zeros(shape, dtype=dtype, device=device)", "self.values = self.keys"), truth="keys and values are the same tensor")
change("11.3", "wrong axis counted", CACHE, ("key.shape[2]", "key.shape[1]"), truth="L is read off the axis of heads, not of tokens")
change("11.3", "crop subtracts", CACHE, ("        self.length = length", "        self.length -= length"), truth="crop takes length off instead of setting it")
change("11.3", "crop loses room", CACHE, ("        self.length = length", "        self.keys, self.values = self.keys[:, :, :, :length], self.values[:, :, :, :length]\n        self.length = length"), truth="crop cuts the tensors off, so room is lost")
change("11.3", "crop does nothing", CACHE, ("        self.length = length", "        self.keys[:, :, :, length:] = 0\n        self.values[:, :, :, length:] = 0"), truth="crop does not set length back")
change("11.3", "crop erases all", CACHE, ("        self.length = length", "        self.length = 0"), truth="crop starts again from nothing instead of keeping the first tokens")
change("11.3", "writes at the start", CACHE, ("[layer_idx, :, :, self.length:end] =", "[layer_idx, :, :, :key.shape[2]] ="), truth="new tokens are written at column 0, over the old ones")
change("11.3", "one layer for all", CACHE, ("[layer_idx,", "[0,"), truth="all layers write to layer 0")
wrong("11.3", "grows by cat", """
class KVCache:
    def __init__(self, config, batch_size, max_length, dtype=torch.float32, device="cpu"):
        empty = torch.zeros(batch_size, config.num_key_value_heads, 0, config.head_dim, dtype=dtype, device=device)
        self.keys = [empty] * config.num_hidden_layers
        self.values = [empty] * config.num_hidden_layers
        self.length = 0

    def update(self, key, value, layer_idx):
        self.keys[layer_idx] = torch.cat([self.keys[layer_idx][:, :, :self.length], key], dim=2)
        self.values[layer_idx] = torch.cat([self.values[layer_idx][:, :, :self.length], value], dim=2)
        return self.keys[layer_idx], self.values[layer_idx]

    def advance(self, new_tokens):
        self.length += new_tokens

    def crop(self, length):
        self.length = length
""", truth="the cache grows by torch.cat, which copies everything each time, instead of reserving the room")
right("11.3", "narrow and copy_", """
class KVCache:
    def __init__(self, config, batch_size, max_length, dtype=torch.float32, device="cpu"):
        room = [config.num_hidden_layers, batch_size, config.num_key_value_heads, max_length, config.head_dim]
        self.keys = torch.empty(*room, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def update(self, key, value, layer_idx):
        L = key.size(2)
        for store, new in ((self.keys, key), (self.values, value)):
            store[layer_idx].narrow(2, self.length, L).copy_(new)
        return tuple(store[layer_idx].narrow(2, 0, self.length + L) for store in (self.keys, self.values))

    def advance(self, new_tokens):
        self.crop(self.length + new_tokens)

    def crop(self, length):
        self.length = length
""")
right("11.3", "other names, length as a property", """
class KVCache:
    def __init__(self, config, batch_size, max_length, dtype=torch.float32, device="cpu"):
        shape = (config.num_hidden_layers, batch_size, config.num_key_value_heads, max_length, config.head_dim)
        self.k, self.v = torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)
        self._held = 0

    @property
    def length(self):
        return self._held

    def update(self, key, value, layer_idx):
        first, last = self._held, self._held + key.shape[-2]
        self.k[layer_idx][..., first:last, :] = key
        self.v[layer_idx][..., first:last, :] = value
        return self.k[layer_idx][..., :last, :], self.v[layer_idx][..., :last, :]

    def advance(self, new_tokens):
        self._held += new_tokens

    def crop(self, length):
        self._held = length
""")

# --- 11.4 -------------------------------------------------------------------------------------------------------------

LOOP = """
def write(next_logits, prompt, max_new_tokens, eos, pad):
    finished = torch.zeros(len(prompt), dtype=torch.bool)
    written = []
    logits = next_logits(prompt)
    while True:
        tokens = logits.argmax(dim=-1).masked_fill(finished, pad)
        written.append(tokens)
        finished = finished | (tokens == eos)
        if finished.all() or len(written) == max_new_tokens:
            break
        logits = next_logits(tokens[:, None])
    return torch.stack(written, dim=1)
"""
change("11.4", "whole text fed again", LOOP, ("logits = next_logits(tokens[:, None])", "logits = next_logits(torch.cat([prompt, torch.stack(written, dim=1)], dim=1))"), truth="feeds everything so far instead of the new token alone")
change("11.4", "one call too many", LOOP, ("        if finished.all() or len(written) == max_new_tokens:\n            break\n        logits = next_logits(tokens[:, None])", "        logits = next_logits(tokens[:, None])\n        if finished.all() or len(written) == max_new_tokens:\n            break"), truth="calls the model once more after the last token")
change("11.4", "stops at the first row", LOOP, ("finished.all()", "finished.any()"), truth="stops when any row has ended instead of all")
change("11.4", "ended rows not padded", LOOP, (".masked_fill(finished, pad)", ""), truth="rows that have ended go on writing instead of getting pad")
change("11.4", "eos becomes pad", LOOP, ("        tokens = logits.argmax(dim=-1).masked_fill(finished, pad)\n        written.append(tokens)\n        finished = finished | (tokens == eos)\n", "        tokens = logits.argmax(dim=-1)\n        finished = finished | (tokens == eos)\n        tokens = tokens.masked_fill(finished, pad)\n        written.append(tokens)\n"), truth="eos itself is replaced by pad")
change("11.4", "finished forgotten", LOOP, ("finished = finished | (tokens == eos)", "finished = tokens == eos"), truth="which rows had ended is forgotten at the next step")
change("11.4", "prompt returned too", LOOP, ("torch.stack(written, dim=1)", "torch.cat([prompt, torch.stack(written, dim=1)], dim=1)"), truth="the prompt is in the result")
change("11.4", "steps and rows exchanged", LOOP, ("torch.stack(written, dim=1)", "torch.stack(written, dim=0)"), truth="the result is [steps, B]", says="[4, B=2], expected [B=2, 4]")
change("11.4", "one token too many", LOOP, ("len(written) == max_new_tokens", "len(written) > max_new_tokens"), truth="writes max_new_tokens + 1 tokens")
change("11.4", "one token too few", LOOP, ("len(written) == max_new_tokens", "len(written) >= max_new_tokens - 1"), truth="writes only max_new_tokens - 1 tokens")
change("11.4", "last eos dropped", LOOP, ("        written.append(tokens)\n        finished = finished | (tokens == eos)\n        if finished.all() or", "        finished = finished | (tokens == eos)\n        if finished.all() and written:\n            break\n        written.append(tokens)\n        if"), truth="the last tokens, with eos, are not in the result when all rows have ended")
change("11.4", "argmax over the batch", LOOP, ("argmax(dim=-1)", "argmax(dim=0)[: len(prompt)]"), truth="argmax over rows of the batch instead of the vocabulary")
change("11.4", "never stops early", LOOP, ("finished.all() or ", ""), truth="goes on to max_new_tokens although all rows have ended")
change("11.4", "only the first row's token fed", LOOP, ("next_logits(tokens[:, None])", "next_logits(tokens[:1, None].expand(len(prompt), 1))"), truth="feeds the first row's token to every row")
change("11.4", "pad instead of eos", LOOP, ("tokens == eos", "tokens == pad"), truth="looks for pad instead of eos as the end")
right("11.4", "for loop over a padded result", """
def write(next_logits, prompt, max_new_tokens, eos, pad):
    B = prompt.shape[0]
    result = torch.full((B, max_new_tokens), pad, dtype=torch.int64)
    alive = [True] * B
    feed = prompt
    for step in range(max_new_tokens):
        best = next_logits(feed).max(dim=1).indices
        for b in range(B):
            if alive[b]:
                result[b, step] = best[b]
                alive[b] = int(best[b]) != eos
        if not any(alive):
            return result[:, : step + 1]
        feed = result[:, step : step + 1]
    return result
""")

# --- 11.5 -------------------------------------------------------------------------------------------------------------

SAMPLERS = """
def expose():
    return {
        "A": (torch.tensor([[0.5, 0.5]]), 0.75),
        "B": (torch.tensor([[0.25, 0.75]]), 1.0),
        "C": (torch.tensor([[0.75, 0.25]]), 0.5),
        "D": (torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.25, 0.25]]), 1.0),
        "E": (torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.75, 0.25]]), 1.0),
    }
"""
change("11.5", "B's input drops a word", SAMPLERS, ("(torch.tensor([[0.25, 0.75]]), 1.0)", "(torch.tensor([[0.25, 0.75]]), 0.5)"), truth="B's input exposes C as well, because a word is dropped")
change("11.5", "A's input exposes nothing", SAMPLERS, ("(torch.tensor([[0.5, 0.5]]), 0.75)", "(torch.tensor([[0.5, 0.5]]), 1.0)"), truth="A's input exposes nothing: with top_p 1 A drops nothing")
change("11.5", "D's input drops a word", SAMPLERS, ("(torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.25, 0.25]]), 1.0)", "(torch.tensor([[0.75, 0.25], [0.5, 0.5]]), 0.6)"), truth="D's input exposes C as well: a word with a probability is dropped")
change("11.5", "one row for E", SAMPLERS, ("torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.75, 0.25]])", "torch.tensor([[0.75, 0.25]])"), truth="with a single row E has nothing to add up: E's input exposes nothing")
change("11.5", "rows do not sum to 1", SAMPLERS, ("[[0.5, 0.5]]", "[[0.5, 0.4]]"), truth="a row of A's input does not sum to 1")
change("11.5", "top_p above 1", SAMPLERS, ("[0.5, 0.25, 0.25]]), 1.0)", "[0.5, 0.25, 0.25]]), 1.5)"), truth="D's top_p is above 1")
change("11.5", "E forgotten", SAMPLERS, ('        "E": (torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.75, 0.25]]), 1.0),\n', ""), truth="there is no input for E", says="the keys are ['A', 'B', 'C', 'D'], expected ['A', 'B', 'C', 'D', 'E']")
change("11.5", "no batch axis", SAMPLERS, ("torch.tensor([[0.75, 0.25]]), 0.5", "torch.tensor([0.75, 0.25]), 0.5"), truth="p of C has no batch axis: it is [V] instead of [B, V]", says="C: p is to be a tensor [B, V]")
right("11.5", "larger inputs", """
def expose():
    rows = torch.tensor([[0.5, 0.25, 0.125, 0.125]])
    return dict(
        A=(rows, 0.9375),
        B=(rows.flip(1), 1.0),
        C=(rows, 0.5),
        D=(torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.25, 0.25]]), 1.0),
        E=(rows.repeat(4, 1), 1.0),
    )
""")
