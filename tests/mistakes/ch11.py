"""Sampling, the cache and the loop, as learners write them."""

import numpy as np
import torch
from torch.nn import functional as F

from . import right, wrong

# --- 11.1 --------------------------------------------------------------------------------------------------------


@right("11.1")
def _(logits, temperature):
    return F.softmax(logits / temperature, dim=-1)


@right("11.1")
def _(logits, temperature):
    scaled = logits / temperature
    e = torch.exp(scaled - scaled.max(dim=-1, keepdim=True).values)
    return e / e.sum(dim=-1, keepdim=True)


@right("11.1")
def _(logits, temperature):
    return torch.stack([torch.softmax(row / temperature, 0) for row in logits])


@wrong("11.1", "multiplied")
def _(logits, temperature):
    return F.softmax(logits * temperature, dim=-1)


@wrong("11.1", "temperature unused")
def _(logits, temperature):
    return torch.softmax(logits, dim=1)


@wrong("11.1", "after the softmax")
def _(logits, temperature):
    return torch.softmax(logits, dim=1) / temperature


@wrong("11.1", "softmax over the wrong axis")
def _(logits, temperature):
    return F.softmax(logits / temperature, dim=0)


@wrong("11.1", "overflow")
def _(logits, temperature):
    e = torch.exp(logits / temperature)
    return e / e.sum(1, keepdim=True)


@wrong("11.1", "no softmax")
def _(logits, temperature):
    return logits / temperature


@wrong("11.1", "log")
def _(logits, temperature):
    return F.log_softmax(logits / temperature, dim=-1)


@wrong("11.1", "input changed")
def _(logits, temperature):
    logits /= temperature
    return logits.softmax(-1)


@wrong("11.1", "no return")
def _(logits, temperature):
    torch.softmax(logits / temperature, -1)


# --- 11.2 --------------------------------------------------------------------------------------------------------


@right("11.2")
def _(p, top_p):
    sorted_p, order = torch.sort(p, descending=True, dim=-1)
    before = sorted_p.cumsum(-1) - sorted_p
    sorted_p = sorted_p.masked_fill(before >= top_p, 0)
    out = torch.zeros_like(p).scatter(-1, order, sorted_p)
    return out / out.sum(-1, keepdim=True)


@wrong("11.2", "ties kept together")
def _(p, top_p):
    # For each token: how much do the likelier ones have together?
    likelier = p[:, None, :] > p[:, :, None]  # [B, token, other]
    before = (likelier * p[:, None, :]).sum(-1)
    kept = torch.where(before < top_p, p, torch.zeros_like(p))
    return kept / kept.sum(-1, keepdim=True)


@right("11.2")
def _(p, top_p):
    array = p.numpy().copy()
    for row in array:
        total = 0.0
        for i in np.argsort(-row):
            keep = total < top_p
            total += row[i]
            if not keep:
                row[i] = 0
        row /= row.sum()
    return torch.from_numpy(array)


@wrong("11.2", "crossing token dropped")
def _(p, top_p):
    s, i = p.sort(descending=True)
    s[s.cumsum(-1) > top_p] = 0
    out = torch.zeros_like(p).scatter_(1, i, s)
    return out / out.sum(1, keepdim=True)


@wrong("11.2", "crossing token dropped")
def _(p, top_p):
    s, i = p.sort(descending=True)
    remove = s.cumsum(-1) > top_p
    remove[:, 0] = False
    s = s.masked_fill(remove, 0)
    out = torch.zeros_like(p).scatter_(1, i, s)
    return out / out.sum(1, keepdim=True)


@wrong("11.2", "order not undone")
def _(p, top_p):
    s, _ = torch.sort(p, dim=-1, descending=True)
    s = s * ((s.cumsum(-1) - s) < top_p)
    return s / s.sum(-1, keepdim=True)


@wrong("11.2", "not divided")
def _(p, top_p):
    s, i = p.sort(descending=True)
    s = s * ((s.cumsum(-1) - s) < top_p)
    return torch.zeros_like(p).scatter_(1, i, s)


@wrong("11.2", "least likely kept")
def _(p, top_p):
    s, i = p.sort()
    s = s * ((s.cumsum(-1) - s) < top_p)
    out = torch.zeros_like(p).scatter_(1, i, s)
    return out / out.sum(1, keepdim=True)


@wrong("11.2", "nothing dropped")
def _(p, top_p):
    return p.clone()


@wrong("11.2", "not sorted")
def _(p, top_p):
    before = torch.cumsum(p, dim=-1) - p
    kept = p * (before < top_p)
    return kept / kept.sum(-1, keepdim=True)


# --- 11.3 --------------------------------------------------------------------------------------------------------


class Base:
    def __init__(self, config, batch_size, max_length, dtype=torch.float32, device="cpu"):
        shape = (config.num_hidden_layers, batch_size, config.num_key_value_heads, max_length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def update(self, key, value, layer_idx):
        end = self.length + key.shape[2]
        self.keys[layer_idx, :, :, self.length : end] = key
        self.values[layer_idx, :, :, self.length : end] = value
        return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]

    def advance(self, new_tokens):
        self.length += new_tokens

    def crop(self, length):
        self.length = length


right("11.3")(Base)


@right("11.3")
class Narrowing(Base):
    def update(self, key, value, layer_idx):
        new = key.size(2)
        for store, states in ((self.keys, key), (self.values, value)):
            store[layer_idx].narrow(2, self.length, new).copy_(states)
        end = self.length + new
        return self.keys[layer_idx].narrow(2, 0, end), self.values[layer_idx].narrow(2, 0, end)


@right("11.3")
class OneTensor:
    def __init__(self, config, batch_size, max_length, dtype=torch.float32, device="cpu"):
        shape = (config.num_hidden_layers, batch_size, config.num_key_value_heads, max_length, config.head_dim)
        self.k, self.v = torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def update(self, key, value, layer_idx):
        start, end = self.length, self.length + key.shape[-2]
        self.k[layer_idx][..., start:end, :] = key
        self.v[layer_idx][..., start:end, :] = value
        return self.k[layer_idx][..., :end, :], self.v[layer_idx][..., :end, :]

    def advance(self, new_tokens):
        self.length = self.length + new_tokens

    def crop(self, length):
        """Cleans up behind, which nobody asks for."""
        self.k[..., length:, :] = 0
        self.v[..., length:, :] = 0
        self.length = length


@wrong("11.3", "moved on by every layer")
class _(Base):
    def update(self, key, value, layer_idx):
        out = super().update(key, value, layer_idx)
        self.length += key.shape[2]
        return out

    def advance(self, new_tokens):
        pass


@wrong("11.3", "no crop")
class AsInTheChapter:
    __init__, update, advance = Base.__init__, Base.update, Base.advance


@wrong("11.3", "crop does nothing")
class _(Base):
    def crop(self, length):
        return self.keys[..., :length, :], self.values[..., :length, :]


@wrong("11.3", "crop takes off so many")
class _(Base):
    def crop(self, length):
        self.length = self.length - length


@wrong("11.3", "room cut off")
class _(Base):
    def crop(self, length):
        self.keys = self.keys[:, :, :, :length]
        self.values = self.values[:, :, :, :length]
        self.length = length


@wrong("11.3", "crop empties")
class _(Base):
    def crop(self, length):
        self.keys[..., length:, :] = 0
        self.values[..., length:, :] = 0
        self.length = 0


@wrong("11.3", "never moved on")
class _(Base):
    def advance(self, new_tokens):
        return None


@wrong("11.3", "new tokens only")
class _(Base):
    def update(self, key, value, layer_idx):
        end = self.length + key.shape[2]
        self.keys[layer_idx, :, :, self.length : end] = key
        self.values[layer_idx, :, :, self.length : end] = value
        return self.keys[layer_idx, :, :, self.length : end], self.values[layer_idx, :, :, self.length : end]


@wrong("11.3", "empty columns returned")
class _(Base):
    def update(self, key, value, layer_idx):
        super().update(key, value, layer_idx)
        return self.keys[layer_idx], self.values[layer_idx]


@wrong("11.3", "one layer for all")
class _(Base):
    def update(self, key, value, layer_idx):
        return super().update(key, value, 0)


@wrong("11.3", "key and value swapped")
class _(Base):
    def update(self, key, value, layer_idx):
        return super().update(value, key, layer_idx)


@wrong("11.3", "moved on by one")
class _(Base):
    def advance(self, new_tokens):
        self.length += 1


@wrong("11.3", "not allocated once")
class _:
    def __init__(self, config, batch_size, max_length, dtype=torch.float32, device="cpu"):
        self.keys = [None] * config.num_hidden_layers
        self.values = [None] * config.num_hidden_layers
        self.length = 0

    def update(self, key, value, layer_idx):
        if self.keys[layer_idx] is None:
            self.keys[layer_idx], self.values[layer_idx] = key, value
        else:
            self.keys[layer_idx] = torch.cat([self.keys[layer_idx], key], dim=2)
            self.values[layer_idx] = torch.cat([self.values[layer_idx], value], dim=2)
        return self.keys[layer_idx], self.values[layer_idx]

    def advance(self, new_tokens):
        self.length += new_tokens

    def crop(self, length):
        self.keys = [key[:, :, :length] for key in self.keys]
        self.values = [value[:, :, :length] for value in self.values]
        self.length = length


@wrong("11.3", "copied")
class _(Base):
    def update(self, key, value, layer_idx):
        k, v = super().update(key, value, layer_idx)
        return k.clone(), v.clone()


@wrong("11.3", "raised")
class _(Base):
    def update(self, key, value, layer_idx):
        self.keys[layer_idx, :, self.length : self.length + key.shape[2]] = key
        self.values[layer_idx, :, self.length : self.length + key.shape[2]] = value
        return self.keys[layer_idx], self.values[layer_idx]


# --- 11.4 --------------------------------------------------------------------------------------------------------


@right("11.4")
def _(next_logits, prompt, max_new_tokens, eos, pad):
    done = torch.zeros(prompt.shape[0], dtype=torch.bool)
    tokens, out = prompt, []
    while len(out) < max_new_tokens and not done.all():
        best = next_logits(tokens).argmax(dim=-1)
        best = torch.where(done, torch.full_like(best, pad), best)
        done |= best == eos
        out.append(best)
        tokens = best.unsqueeze(1)
    return torch.stack(out, 1)


@right("11.4")
def _(next_logits, prompt, max_new_tokens, eos, pad):
    rows = [[] for _ in prompt]
    feed = prompt
    for _ in range(max_new_tokens):
        choice = next_logits(feed).max(-1).indices.tolist()
        for row, token in zip(rows, choice, strict=True):
            row.append(pad if eos in row else token)
        if all(eos in row for row in rows):
            break
        feed = torch.tensor([[row[-1]] for row in rows])
    return torch.tensor(rows)


@wrong("11.4", "row goes on after EOS")
def _(next_logits, prompt, max_new_tokens, eos, pad):
    done = torch.zeros(len(prompt), dtype=torch.bool)
    out, tokens = [], prompt
    while len(out) < max_new_tokens and not done.all():
        best = next_logits(tokens).argmax(-1)
        done |= best == eos
        out.append(best)
        tokens = best[:, None]
    return torch.stack(out, 1)


@wrong("11.4", "never stops")
def _(next_logits, prompt, max_new_tokens, eos, pad):
    done = torch.zeros(len(prompt), dtype=torch.bool)
    out, tokens = [], prompt
    for _ in range(max_new_tokens):
        best = next_logits(tokens).argmax(-1).masked_fill(done, pad)
        done |= best == eos
        out.append(best)
        tokens = best[:, None]
    return torch.stack(out, 1)


@wrong("11.4", "everything fed again")
def _(next_logits, prompt, max_new_tokens, eos, pad):
    done = torch.zeros(len(prompt), dtype=torch.bool)
    ids, new = prompt, 0
    while new < max_new_tokens and not done.all():
        best = next_logits(ids).argmax(-1).masked_fill(done, pad)
        done |= best == eos
        ids = torch.cat([ids, best[:, None]], dim=1)
        new += 1
    return ids[:, prompt.shape[1] :]


@wrong("11.4", "one step too many")
def _(next_logits, prompt, max_new_tokens, eos, pad):
    done = torch.zeros(len(prompt), dtype=torch.bool)
    logits, out = next_logits(prompt), []
    for _ in range(max_new_tokens):
        best = logits.argmax(-1).masked_fill(done, pad)
        out.append(best)
        done |= best == eos
        if done.all():
            break
        logits = next_logits(best[:, None])
    return torch.stack(out, 1)


@wrong("11.4", "stops at the first end")
def _(next_logits, prompt, max_new_tokens, eos, pad):
    tokens, out = prompt, []
    for _ in range(max_new_tokens):
        tokens = next_logits(tokens).argmax(-1)[:, None]
        out.append(tokens)
        if eos in tokens:
            break
    return torch.cat(out, dim=1)


@wrong("11.4", "prompt in the answer")
def _(next_logits, prompt, max_new_tokens, eos, pad):
    done = torch.zeros(len(prompt), dtype=torch.bool)
    ids, tokens, new = prompt, prompt, 0
    while new < max_new_tokens and not done.all():
        best = next_logits(tokens).argmax(-1).masked_fill(done, pad)
        done |= best == eos
        tokens = best[:, None]
        ids = torch.cat([ids, tokens], dim=1)
        new += 1
    return ids


@wrong("11.4", "no return")
def _(next_logits, prompt, max_new_tokens, eos, pad):
    done = torch.zeros(len(prompt), dtype=torch.bool)
    tokens, new = prompt, 0
    while new < max_new_tokens and not done.all():
        tokens = next_logits(tokens).argmax(-1).masked_fill(done, pad)[:, None]
        done |= tokens[:, 0] == eos
        new += 1


# --- 11.5 --------------------------------------------------------------------------------------------------------


def exposed(**changed):
    rows = {
        "A": (torch.tensor([[0.5, 0.5]]), 0.9),
        "B": (torch.tensor([[0.125, 0.625, 0.25]]), 1.0),
        "C": (torch.tensor([[0.9, 0.06, 0.04]]), 0.3),
        "D": (torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]), 1.0),
        "E": (torch.full((5, 4), 0.25), 1.0),
    }
    return lambda: {**rows, **changed}


right("11.5")(exposed())


@right("11.5")
def _():
    given = exposed()()
    return {name: (p.double(), top_p) for name, (p, top_p) in given.items()}


wrong("11.5", "not exposed")(exposed(A=(torch.tensor([[0.5, 0.25, 0.25]]), 1.0)))
wrong("11.5", "not exposed")(exposed(B=(torch.tensor([[0.6, 0.4]]), 1.0)))
wrong("11.5", "exposes others")(exposed(A=(torch.tensor([[0.4, 0.4, 0.2]]), 0.6)))
wrong("11.5", "exposes others")(exposed(D=(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), 1.0)))
wrong("11.5", "not exposed")(exposed(E=(torch.tensor([[0.5, 0.5]]), 1.0)))
wrong("11.5", "not an input")(exposed(C=(torch.tensor([0.9, 0.1]), 0.5)))
wrong("11.5", "not an input")(exposed(C=(torch.tensor([[0.9, 0.3]]), 0.5)))
wrong("11.5", "not an input")(exposed(C=(torch.tensor([[0.9, 0.1]]), 0.0)))
wrong("11.5", "not an input")(exposed(C=torch.tensor([[0.9, 0.1]])))
wrong("11.5", "structure")(lambda: {"A": (torch.tensor([[0.5, 0.5]]), 0.9)})
wrong("11.5", "type")(lambda: list(exposed()().values()))


# --- Wrong ones that once passed, or that never ended ------------------------------------------------------------


@wrong("11.1", "one largest for all rows")
def _(logits, temperature):
    scaled = logits / temperature
    powers = torch.exp(scaled - scaled.max())
    return powers / powers.sum(dim=1, keepdim=True)


@wrong("11.1", "power of the softmax")
def _(logits, temperature):
    p = torch.softmax(logits, dim=-1).pow(1 / temperature)
    return p / p.sum(dim=-1, keepdim=True)


@wrong("11.2", "gathered back")
def _(p, top_p):
    values, order = torch.sort(p, dim=1, descending=True)
    before = torch.cumsum(values, dim=1) - values
    values[before >= top_p] = 0
    values = values / values.sum(dim=1, keepdim=True)
    return torch.gather(values, 1, order)


@wrong("11.3", "dtype ignored")
class _:
    def __init__(self, config, batch_size, max_length, dtype=torch.float32, device="cpu"):
        shape = config.num_hidden_layers, batch_size, config.num_key_value_heads, max_length, config.head_dim
        self.keys, self.values, self.length = torch.zeros(shape), torch.zeros(shape), 0

    def update(self, key, value, layer_idx):
        end = self.length + key.shape[2]
        self.keys[layer_idx][:, :, self.length : end] = key
        self.values[layer_idx][:, :, self.length : end] = value
        return self.keys[layer_idx][:, :, :end], self.values[layer_idx][:, :, :end]

    def advance(self, new_tokens):
        self.length += new_tokens

    def crop(self, length):
        self.length = length


@wrong("11.3", "moved on by every layer")
class _:
    """Counts in layer 0, as transformers' DynamicCache does."""

    def __init__(self, config, batch_size, max_length, dtype=torch.float32, device="cpu"):
        shape = config.num_hidden_layers, batch_size, config.num_key_value_heads, max_length, config.head_dim
        self.keys, self.values = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        self.length = self.start = 0

    def update(self, key, value, layer_idx):
        if layer_idx == 0:
            self.start, self.length = self.length, self.length + key.shape[2]
        self.keys[layer_idx, :, :, self.start : self.length] = key
        self.values[layer_idx, :, :, self.start : self.length] = value
        return self.keys[layer_idx, :, :, : self.length], self.values[layer_idx, :, :, : self.length]

    def advance(self, new_tokens):
        pass


@wrong("11.4", "ends in one step only")
def _(next_logits, prompt, max_new_tokens, eos, pad):
    out, tokens = [], prompt
    while len(out) < max_new_tokens:
        best = next_logits(tokens).argmax(-1)
        out.append(best)
        if (best == eos).all():
            break
        tokens = best[:, None]
    return torch.stack(out, 1)


@wrong("11.4", "one step too many")
def _(next_logits, prompt, max_new_tokens, eos, pad):
    done = torch.zeros(len(prompt), dtype=torch.bool)
    logits, out = next_logits(prompt), []
    for step in range(max_new_tokens):
        best = logits.argmax(-1).masked_fill(done, pad)
        out.append(best)
        done |= best == eos
        if step + 1 == max_new_tokens:
            break
        logits = next_logits(best[:, None])
        if done.all():
            break
    return torch.stack(out, 1)


@wrong("11.4", "no end")
def _(next_logits, prompt, max_new_tokens, eos, pad):
    logits, finished, written = next_logits(prompt), torch.zeros(len(prompt), dtype=torch.bool), []
    while True:
        tokens = logits.argmax(-1).masked_fill(finished, pad)
        written.append(tokens)
        finished |= tokens == eos
        if finished.all():
            return torch.stack(written, 1)
        logits = next_logits(tokens[:, None])
