"""Held-out solutions of chapter 08."""

# ruff: noqa: E501
# fmt: off

from . import change, right, wrong

# --- 08.1 -------------------------------------------------------------------------------------------------------------

right("08.1", "computed from steps", """
def fill_in():
    def table(steps, real=(1, 1, 1, 1, 1)):
        return [[int(k <= q and r) for k, r in zip(steps, real)] for q in steps]
    return {
        "causal": table([0, 1, 2, 3, 4]),
        "full": table([0] * 5),
        "prefix-LM": table([0, 0, 0, 1, 2]),
        "padded": table([0, 0, 0, 1, 2], [0, 1, 1, 1, 1]),
    }
""")
right("08.1", "torch and tolist", """
def fill_in():
    causal = torch.ones(5, 5).tril().int()
    prefix = causal.clone()
    prefix[:3, :3] = 1
    padded = prefix.clone()
    padded[:, 0] = 0
    return {"causal": causal.tolist(), "full": torch.ones(5, 5).int().tolist(), "prefix-LM": prefix.tolist(), "padded": padded.tolist()}
""")
wrong("08.1", "causal transposed", """
def fill_in():
    causal = torch.ones(5, 5).triu().int()
    prefix = torch.ones(5, 5).tril().int()
    prefix[:3, :3] = 1
    padded = prefix.clone()
    padded[:, 0] = 0
    return {"causal": causal.tolist(), "full": [[1] * 5] * 5, "prefix-LM": prefix.tolist(), "padded": padded.tolist()}
""", says="your causal table is mirrored at the diagonal: a")
F81 = right("08.1", "as most write it", """
def fill_in():
    return {
        "causal": [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],
        ],
        "full": [[1, 1, 1, 1, 1]] * 5,
        "prefix-LM": [
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],
        ],
        "padded": [
            [0, 1, 1, 0, 0],
            [0, 1, 1, 0, 0],
            [0, 1, 1, 0, 0],
            [0, 1, 1, 1, 0],
            [0, 1, 1, 1, 1],
        ],
    }
""")
change("08.1", "padding's row emptied", F81, ("""        "padded": [
            [0, 1, 1, 0, 0],
            [0, 1, 1, 0, 0],
            [0, 1, 1, 0, 0],
            [0, 1, 1, 1, 0],
            [0, 1, 1, 1, 1],""", """        "padded": [
            [0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],"""), says="in your last table the row of the padding is empty,")
change("08.1", "row and column emptied", F81, ("""        "padded": [
            [0, 1, 1, 0, 0],""", """        "padded": [
            [0, 0, 0, 0, 0],"""), says="in your last table the padding sees nothing. The")
change("08.1", "prompt a step of its own", F81, ("""        "prefix-LM": [
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],""", """        "prefix-LM": [
            [1, 1, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],"""), says="in your table 'prefix-LM' the prompt is a step of")
change("08.1", "answer sees the later one", F81, ('''            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],
        ],
        "padded"''', '''            [1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1],
        ],
        "padded"'''), says="in your table 'prefix-LM' the first token of the")
change("08.1", "key misspelt", F81, ('"prefix-LM"', '"prefix-lm"'), says="keys ['causal', 'full', 'padded', 'prefix-lm'],")
change("08.1", "causal without itself", F81, ('''            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],
        ],
        "full"''', '''            [0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
        ],
        "full"'''), says="in your causal mask tokens do not see themselves: a")
change("08.1", "padded is causal", F81, ("""[
            [0, 1, 1, 0, 0],
            [0, 1, 1""", """[
            [0, 0, 0, 0, 0],
            [0, 1, 0"""), says="your last table is causal: it is the prefix-LM")
wrong("08.1", "0 for may see", """
def fill_in():
    causal = [[int(k > q) for k in range(5)] for q in range(5)]
    prefix = [[int(k > max(q, 2)) for k in range(5)] for q in range(5)]
    padded = [[1] + row[1:] for row in prefix]
    return {"causal": causal, "full": [[0] * 5 for _ in range(5)], "prefix-LM": prefix, "padded": padded}
""", says="each table has 1 where it should have 0: 1 is for")
change("08.1", "four rows", F81, ('"full": [[1, 1, 1, 1, 1]] * 5', '"full": [[1, 1, 1, 1, 1]] * 4'), says="`full`: the shape is [4, T=5], expected [T=5,")

# --- 08.2 -------------------------------------------------------------------------------------------------------------

right("08.2", "loops", """
def make_attn_mask(input_mask, mask_ar, num_queries=None):
    B, T = mask_ar.shape
    L = T if num_queries is None else num_queries
    out = torch.zeros(B, L, T, dtype=torch.bool)
    for b in range(B):
        steps, s = [], 0
        for a in mask_ar[b].tolist():
            s += a
            steps.append(s)
        for row, q in enumerate(range(T - L, T)):
            for k in range(T):
                out[b, row, k] = steps[k] <= steps[q] and bool(input_mask[b, k])
    return out
""")
right("08.2", "later steps counted, cut at the end", """
def make_attn_mask(input_mask, mask_ar, num_queries=None):
    T = mask_ar.size(1)
    step = torch.cumsum(mask_ar, 1)
    later = (step.unsqueeze(1) - step.unsqueeze(2)).clamp(min=0)
    full = torch.logical_and(later == 0, input_mask.unsqueeze(1) == 1)
    return full.narrow(1, T - (num_queries or T), num_queries or T)
""")
M82 = right("08.2", "as most write it", """
def make_attn_mask(input_mask, mask_ar, num_queries=None):
    step = mask_ar.cumsum(dim=-1)
    query_step = step if num_queries is None else step[:, -num_queries:]
    allowed = step[:, None, :] <= query_step[:, :, None]
    return allowed & input_mask.bool()[:, None, :]
""")
change("08.2", "strictly earlier", M82, ("<=", "<"), says="your tokens see earlier steps only, not their own:")
change("08.2", "turned round", M82, ("<=", ">="), says="your tokens see what comes later, and not what came")
change("08.2", "own step only", M82, ("<=", "=="), says="your tokens see their own step and none before it")
change("08.2", "padding on rows", M82, ("input_mask.bool()[:, None, :]", "input_mask.bool()[:, -allowed.shape[1]:, None]"), says="padding cannot look, and can be seen: `input_mask`")
change("08.2", "rows and columns", M82, ("return allowed & input_mask.bool()[:, None, :]", """real = input_mask.bool()
    return allowed & real[:, None, :] & real[:, -allowed.shape[1]:, None]"""), says="padding can neither be seen nor look: rows without")
change("08.2", "first queries", M82, ("step[:, -num_queries:]", "step[:, :num_queries]"), says="with `num_queries` the first rows come back: those")
change("08.2", "num_queries ignored", M82, ("query_step = step if num_queries is None else step[:, -num_queries:]", "query_step = step"), says="all rows come back, whatever `num_queries` says")
change("08.2", "padding seen", M82, (" & input_mask.bool()[:, None, :]", ""), says="padding can be seen: `input_mask` has no effect")
change("08.2", "or", M82, ("allowed & input", "allowed | input"), says="`|` lets a pair through that has one of the two:")
change("08.2", "int64", M82, ("return allowed & input_mask.bool()[:, None, :]", "return (allowed & input_mask.bool()[:, None, :]).long()"), says="a comparison gives bool, and so does `&` of two")
change("08.2", "not added up", M82, ("mask_ar.cumsum(dim=-1)", "mask_ar"), says="zeros and ones themselves are compared: then all")
change("08.2", "down the batch", M82, ("dim=-1", "dim=0"), says="the steps are added up over the rows of the batch,")
change("08.2", "input_mask turned round", M82, ("input_mask.bool()", "(~input_mask.bool())"), says="padding is seen, and what is real is not:")
wrong("08.2", "tril", """
def make_attn_mask(input_mask, mask_ar, num_queries=None):
    B, T = input_mask.shape
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    if num_queries is not None:
        causal = causal[-num_queries:]
    return causal[None] & input_mask.bool()[:, None, :]
""", says="your mask is causal, whatever `mask_ar` says: each")
change("08.2", "input_mask of the first row", M82, (".bool()[:", "[0].bool()[None"), says="the padding of the first row of the batch is taken")
wrong("08.2", "keys cut as well", """
def make_attn_mask(input_mask, mask_ar, num_queries=None):
    step = mask_ar.cumsum(dim=1)
    mask = input_mask.bool()
    if num_queries is not None:
        step, mask = step[:, -num_queries:], mask[:, -num_queries:]
    return (step[:, None, :] <= step[:, :, None]) & mask[:, None, :]
""", says="with `num_queries` the columns are cut as well: the")
wrong("08.2", "cut before the sum", """
def make_attn_mask(input_mask, mask_ar, num_queries=None):
    keys = mask_ar.cumsum(-1)
    queries = keys if num_queries is None else mask_ar[:, -num_queries:].cumsum(-1)
    return (keys[:, None] <= queries[..., None]) & (input_mask[:, None] == 1)
""", says="the queries are cut off before their steps are")
wrong("08.2", "padding taken out of the steps", """
def make_attn_mask(input_mask, mask_ar, num_queries=None):
    step = (mask_ar * input_mask).cumsum(-1)
    queries = step[:, -num_queries:] if num_queries else step
    return step[:, None, :] <= queries[:, :, None]
""", says="`input_mask` changes the steps, and padding can")
change("08.2", "an axis for the heads", M82, ("return allowed & input_mask.bool()[:, None, :]", "return (allowed & input_mask.bool()[:, None, :])[:, None]"), says="the shape is [B=2, 1, T=7, T=7], expected [B=2,")
change("08.2", "in place", M82, ("sum", "sum_"), says="an in-place operation (+=, *=, a method ending in")

# --- 08.3 -------------------------------------------------------------------------------------------------------------

right("08.3", "where, softmax in float32", """
def masked_weights(scores, allowed):
    lowest = torch.full_like(scores, torch.finfo(scores.dtype).min)
    visible = allowed[:, None].expand_as(scores)
    return torch.softmax(torch.where(visible, scores, lowest).float(), dim=3).to(scores.dtype)
""")
right("08.3", "by hand, blind rows apart", """
def masked_weights(scores, allowed):
    s = scores.float()
    mask = allowed[:, None].expand(s.shape)
    blind = ~mask.any(dim=-1, keepdim=True)
    mask = mask | blind
    s = torch.where(blind, torch.zeros_like(s), s)
    top = s.masked_fill(~mask, float("-inf")).amax(-1, keepdim=True)
    e = (s - top).exp() * mask
    return (e / e.sum(-1, keepdim=True)).type_as(scores)
""")
right("08.3", "head by head", """
def masked_weights(scores, allowed):
    out = scores.clone()
    for h in range(scores.shape[1]):
        one = out[:, h].masked_fill(allowed.logical_not(), torch.finfo(out.dtype).min)
        out[:, h] = nn.functional.softmax(one, dim=2)
    return out
""")
W83 = right("08.3", "as most write it", """
def masked_weights(scores, allowed):
    scores = scores.masked_fill(~allowed.unsqueeze(1), torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)
""")
change("08.3", "mask kept upside down", W83, ("~allowed", "allowed"), says="one of three faults is left: what may be seen is")
change("08.3", "softmax over queries kept", W83, ("dim=-1", "dim=-2"), says="one of three faults is left: the weights that a")
change("08.3", "infinity kept", W83, ("torch.finfo(scores.dtype).min", "-torch.inf"), says="one of three faults is left: a query that may see")
change("08.3", "-1e9", W83, ("torch.finfo(scores.dtype).min", "-1e9"), says="float16 ends at -65504: the lowest number depends")
change("08.3", "float32's lowest", W83, ("torch.finfo(scores.dtype).min", "torch.finfo(torch.float32).min"), says="float16 ends at -65504: the lowest number depends")
change("08.3", "-10", W83, ("torch.finfo(scores.dtype).min", "-10.0"), says="is the right place filled in, and with a number")
change("08.3", "tiny", W83, ("torch.finfo(scores.dtype).min", "torch.finfo(scores.dtype).tiny"), says="forbidden scores become 0 or nearly, and a 0 gets a")
change("08.3", "filled with 0", W83, ("torch.finfo(scores.dtype).min", "0"), says="forbidden scores become 0 or nearly, and a 0 gets a")
change("08.3", "float32 comes out", W83, ("return scores.softmax(dim=-1)", "return scores.float().softmax(dim=-1)"), says="a cast is missing or too much: the result's dtype")
wrong("08.3", "masked after the softmax", """
def masked_weights(scores, allowed):
    weights = scores.softmax(dim=-1)
    return weights * allowed.unsqueeze(1)
""", says="the weights are set to zero after the softmax, so")
wrong("08.3", "nan to 0", """
def masked_weights(scores, allowed):
    scores = scores.masked_fill(~allowed.unsqueeze(1), -torch.inf)
    return torch.nan_to_num(scores.softmax(dim=-1), nan=0.0)
""", says="a query that may see nothing gives no weight at")
wrong("08.3", "in place", """
def masked_weights(scores, allowed):
    scores.masked_fill_(~allowed[:, None], torch.finfo(scores.dtype).min)
    return scores.softmax(-1)
""", says="an in-place operation (+=, *=, a method ending in")
change("08.3", "first row's mask", W83, ("allowed.unsqueeze(1)", "allowed[:1].unsqueeze(1)"), says="the mask of the first row of the batch is taken for")
wrong("08.3", "mask transposed", """
def masked_weights(scores, allowed):
    mask = allowed.transpose(1, 2) if allowed.shape[1] == allowed.shape[2] else allowed
    scores = scores.masked_fill(~mask.unsqueeze(1), torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)
""", says="the mask is transposed: its rows are the queries")
change("08.3", "over the heads", W83, ("dim=-1", "dim=1"), says="the softmax runs over the heads")
wrong("08.3", "scores times mask", """
def masked_weights(scores, allowed):
    return (scores * allowed.unsqueeze(1)).softmax(dim=-1)
""", says="forbidden scores become 0 or nearly, and a 0 gets a")
wrong("08.3", "blind rows all zero by where", """
def masked_weights(scores, allowed):
    m = allowed[:, None]
    w = scores.masked_fill(~m, torch.finfo(scores.dtype).min).softmax(-1)
    return w * m
""", says="a query that may see nothing gives no weight at")

# --- 08.4 -------------------------------------------------------------------------------------------------------------

E84 = right("08.4", "as most write it", """
def exposing():
    one = torch.ones(1, 1, 1)
    yes = torch.ones(1, 1, dtype=torch.bool)
    causal = torch.tensor([[True, False], [True, True]])
    two = torch.tensor([[[1.0], [2.0]]])
    kv = torch.tensor([[[1.0]], [[2.0]]])
    k4 = torch.tensor([[[1.0, 0, 0, 0], [0, 0, 0, 0]]])
    return {
        "tiled": (torch.ones(4, 1, 1), kv, kv, yes),
        "mask_transposed": (torch.zeros(1, 2, 1), two, two, causal),
        "no_scale": (torch.tensor([[[2.0, 0, 0, 0]]]), k4, k4, torch.ones(1, 2).bool()),
        "always_causal": (torch.zeros(1, 2, 1), two, two, torch.ones(2, 2).bool()),
        "keys_averaged": (one, one, 2 * one, yes),
    }
""")
change("08.4", "as many KV heads as heads", E84, ("(torch.ones(4, 1, 1), kv, kv, yes)", "(torch.ones(2, 1, 1), kv, kv, yes)"), says="On your input for tiled, tiled gives what the right version")
change("08.4", "value is key", E84, ("(one, one, 2 * one, yes)", "(one, one, one, yes)"), says="On your input for keys_averaged, keys_averaged gives what the")
change("08.4", "symmetric mask", E84, ("two, two, causal)", "two, two, torch.ones(2, 2).bool())"), says="On your input for mask_transposed, mask_transposed gives what")
change("08.4", "query of zero", E84, ('"no_scale": (torch.tensor([[[2.0, 0, 0, 0]]])', '"no_scale": (torch.tensor([[[0.0, 0, 0, 0]]])'), says="On your input for no_scale, no_scale gives what the right")
change("08.4", "random", E84, ('"keys_averaged": (one, one, 2 * one, yes)', '"keys_averaged": (torch.randn(4, 3, 8), torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.ones(3, 3).bool())'), says="Your input for keys_averaged exposes it, and tiled, no_scale,")
change("08.4", "causal for always_causal", E84, ('"always_causal": (torch.zeros(1, 2, 1), two, two, torch.ones(2, 2).bool())', '"always_causal": (torch.zeros(1, 2, 1), two, two, causal)'), says="On your input for always_causal, always_causal gives what the")
change("08.4", "float mask", E84, ("yes = torch.ones(1, 1, dtype=torch.bool)", "yes = torch.ones(1, 1)"), says="tiled: allowed is not a bool tensor with 2 axes")

# --- 08.5 -------------------------------------------------------------------------------------------------------------

right("08.5", "grouped einsum without copies", """
class GemmaAttention(nn.Module):
    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.scaling = 1 / config.head_dim**0.5
        q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        for name, (a, b) in {"q_proj": (config.hidden_size, q), "k_proj": (config.hidden_size, kv), "v_proj": (config.hidden_size, kv), "o_proj": (q, config.hidden_size)}.items():
            self.add_module(name, nn.Linear(a, b, bias=False))

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        heads = lambda t: t.unflatten(-1, (-1, self.config.head_dim)).movedim(2, 1)
        q, k, v = heads(self.q_proj(hidden_states)), heads(self.k_proj(hidden_states)), heads(self.v_proj(hidden_states))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        if kv_cache is not None:
            k, v = kv_cache.update(k, v, self.layer_idx)
        q = q.unflatten(1, (self.config.num_key_value_heads, -1))
        s = torch.einsum("bkgld,bktd->bkglt", q, k) * self.scaling
        if attention_mask is not None:
            s = s + attention_mask[:, :, None]
        w = s.softmax(-1)
        o = torch.einsum("bkglt,bktd->blkgd", w, v)
        return self.o_proj(o.flatten(2)), w.flatten(1, 2)
""")
right("08.5", "expand, scaled query", """
class GemmaAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.index = layer_idx
        self.n_q, self.n_kv, self.size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.o_proj = nn.Linear(self.n_q * self.size, config.hidden_size, False)
        self.q_proj = nn.Linear(config.hidden_size, self.n_q * self.size, False)
        self.k_proj, self.v_proj = (nn.Linear(config.hidden_size, self.n_kv * self.size, bias=False) for _ in "kv")

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        b, l = hidden_states.shape[:2]
        q = torch.stack(self.q_proj(hidden_states).chunk(self.n_q, -1), 1)
        k = torch.stack(self.k_proj(hidden_states).chunk(self.n_kv, -1), 1)
        v = torch.stack(self.v_proj(hidden_states).chunk(self.n_kv, -1), 1)
        q, k = apply_rotary_pos_emb(q, k, position_embeddings[0], position_embeddings[1])
        if kv_cache is not None:
            k, v = kv_cache.update(k, v, self.index)
        share = [h * self.n_kv // self.n_q for h in range(self.n_q)]
        k, v = k[:, share], v[:, share]
        mask = 0 if attention_mask is None else attention_mask
        w = torch.softmax(torch.matmul(q / self.size**0.5, k.mT) + mask, dim=-1)
        return self.o_proj(torch.cat((w @ v).unbind(1), -1)), w
""")
G85 = right("08.5", "as most write it", """
class GemmaAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.H = config.num_attention_heads
        self.H_kv = config.num_key_value_heads
        self.d = config.head_dim
        D = config.hidden_size
        self.q_proj = nn.Linear(D, self.H * self.d, bias=False)
        self.k_proj = nn.Linear(D, self.H_kv * self.d, bias=False)
        self.v_proj = nn.Linear(D, self.H_kv * self.d, bias=False)
        self.o_proj = nn.Linear(self.H * self.d, D, bias=False)

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        B, L, _ = hidden_states.shape
        query = self.q_proj(hidden_states).view(B, L, self.H, self.d).transpose(1, 2)
        key = self.k_proj(hidden_states).view(B, L, self.H_kv, self.d).transpose(1, 2)
        value = self.v_proj(hidden_states).view(B, L, self.H_kv, self.d).transpose(1, 2)
        cos, sin = position_embeddings
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        if kv_cache is not None:
            key, value = kv_cache.update(key, value, self.layer_idx)
        groups = self.H // self.H_kv
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
        scores = query @ key.transpose(2, 3) * self.d**-0.5
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = scores.softmax(dim=-1)
        out = (weights @ value).transpose(1, 2).flatten(2)
        return self.o_proj(out), weights
""")
change("08.5", "keys tiled", G85, ("key.repeat_interleave(groups, dim=1)", "key.repeat(1, groups, 1, 1)"), says="the keys are shared out as 0 1 0 1, and the values")
change("08.5", "both tiled", G85, ("""_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=""", """(1, groups, 1, 1)
        value = value.repeat(1, groups, 1, """), says="the KV heads are shared out as 0 1 0 1, so that")
change("08.5", "no scale", G85, (" * self.d**-0.5", ""), says="the scores are not divided by the square root of")
change("08.5", "scale of D", G85, ("self.d**-0.5", "hidden_states.shape[-1] ** -0.5"), says="the scores are divided by the square root of the")
change("08.5", "d = D / H", G85, ("self.d = config.head_dim", "self.d = config.hidden_size // config.num_attention_heads"), says="`q_proj.weight` has shape [20, 20], expected [24,")
change("08.5", "mask multiplied", G85, ("scores = scores + attention_mask", "scores = scores * attention_mask"), says="the scores are multiplied by the mask: it is made")
change("08.5", "mask ignored", G85, ("""        if attention_mask is not None:
            scores = scores + attention_mask
""", ""), says="the mask has no effect")
change("08.5", "cache before RoPE", G85, ("""query, key = apply_rotary_pos_emb(query, key, cos, sin)
        if kv_cache is not None:
            key, value = kv_cache.update(key, value, self.layer_idx""", """if kv_cache is not None:
            kv_cache.update(key, value, self.layer_idx)
        query, key = apply_rotary_pos_emb(query, key, cos, sin"""), says="from the second piece on there are more keys than")
change("08.5", "cache's answer thrown away", G85, ("key, value = kv_cache.update(key, value, self.layer_idx)", "kv_cache.update(key, value, self.layer_idx)"), says="from the second piece on there are more keys than")
change("08.5", "layer 0 always", G85, ("kv_cache.update(key, value, self.layer_idx)", "kv_cache.update(key, value, 0)"), says="each layer has a place of its own; its number is")
change("08.5", "key and value exchanged in the cache", G85, ("kv_cache.update(key, value, self.layer_idx)", "kv_cache.update(value, key, self.layer_idx)"), says="the values stand where the keys belong: `update`")
change("08.5", "bias", G85, (""", bias=False)
        self.k_proj = nn.Linear(D, self.H_kv * self.d, bias=False)
        self.v_proj = nn.Linear(D, self.H_kv * self.d, bias=False)
        self.o_proj = nn.Linear(self.H * self.d, D, bias=False""", """)
        self.k_proj = nn.Linear(D, self.H_kv * self.d)
        self.v_proj = nn.Linear(D, self.H_kv * self.d)
        self.o_proj = nn.Linear(self.H * self.d, D"""), says="yours has a parameter `q_proj.bias` [24] that the")
change("08.5", "merged without transpose", G85, ("(weights @ value).transpose(1, 2).flatten(2)", "(weights @ value).reshape(B, L, -1)"), says="the heads are merged while the axis of the heads")
change("08.5", "softmax over queries", G85, ("""dim=-1)
        out""", """dim=-2)
        out"""), says="the weights of a query do not sum to 1: the softmax")
change("08.5", "values turned", G85, ("""n)
        """, """n)
        value, _ = apply_rotary_pos_emb(value, value, cos, sin)
        """), says="the values are turned as well: what a token hands")
change("08.5", "no RoPE", G85, ("""        query, key = apply_rotary_pos_emb(query, key, cos, sin)
""", ""), says="queries and keys are not turned: your attention")
change("08.5", "only queries turned", G85, ("query, key = apply_rotary_pos_emb(query, key, cos, sin)", "query, _ = apply_rotary_pos_emb(query, key, cos, sin)"), says="only the queries are turned")
change("08.5", "cos and sin exchanged", G85, ("apply_rotary_pos_emb(query, key, cos, sin)", "apply_rotary_pos_emb(query, key, sin, cos)"), says="sine and cosine have changed places")
change("08.5", "cached after the copies", G85, ("""if kv_cache is not None:
            key, value = kv_cache.update(key, value, self.layer_idx)
        groups = self.H // self.H_kv
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1""", """groups = self.H // self.H_kv
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
        if kv_cache is not None:
            key, value = kv_cache.update(key, value, self.layer_idx"""), says="where does the cache come: before RoPE or after?")
change("08.5", "weights not returned", G85, ("return self.o_proj(out), weights", "return self.o_proj(out)"), says="the result is a Tensor, expected 2 values")
change("08.5", "o_proj not applied", G85, ("return self.o_proj(out), weights", "return out, weights"), says="the heads lie side by side and are never mixed: the")
change("08.5", "scaled after the mask", G85, ("""scores = query @ key.transpose(2, 3) * self.d**-0.5
        if attention_mask is not None:
            scores = scores + attention_mask
""", """scores = query @ key.transpose(2, 3)
        if attention_mask is not None:
            scores = scores + attention_mask
        scores = scores * self.d**-0.5
"""), says="the mask is scaled together with the scores. With")
change("08.5", "causal without a mask", G85, ("        weights = scores.softmax(dim=-1)", """        else:
            scores = scores + torch.full(scores.shape[-2:], -1e9).triu(1)
        weights = scores.softmax(dim=-1)"""), says="without a mask yours is causal: then every token")
change("08.5", "mask taken as 0 and 1", G85, ("scores = scores + attention_mask", "scores = scores.masked_fill(attention_mask == 0, -1e9)"), says="the mask is read as 1 for what may be seen: it is a")
change("08.5", "queries split by view", G85, ("view(B, L, self.H, self.d).transpose(1, 2)", "view(B, self.H, L, self.d)"), says="the queries are cut into [B, H, L, d] at once:")
change("08.5", "mask only when square", G85, ("scores = scores + attention_mask", "scores = scores + attention_mask[..., -scores.shape[-2]:, :scores.shape[-2]].expand(-1, -1, -1, -1) if attention_mask.shape[-1] == scores.shape[-2] else scores"), says="keys and values are right in the cache; for a")
change("08.5", "values tiled", G85, ("value = value.repeat_interleave(groups, dim=1)", "value = value.repeat(1, groups, 1, 1)"), says="the values are shared out as 0 1 0 1, and the keys")
change("08.5", "prompt not cached", G85, ("if kv_cache is not None:", "if kv_cache is not None and L == 1:"), says="keys and values go through `kv_cache.update`, which")

# --- 08.6 -------------------------------------------------------------------------------------------------------------

right("08.6", "without the package", """
def three_masks():
    def places(T, L):
        return torch.arange(T)[None, :], torch.arange(T)[T - L :, None]

    def build(rule):
        def mask(input_mask, mask_ar, num_queries=None):
            B, T = input_mask.shape
            L = num_queries if num_queries is not None else T
            key, query = places(T, L)
            step = mask_ar.cumsum(1)
            usual = step[:, None, :] <= step[:, T - L :, None]
            return rule(key, query, usual).expand(B, L, T) & (input_mask[:, None, :] == 1)
        return mask

    return {
        "causal": build(lambda k, q, usual: (k <= q)[None]),
        "everything": build(lambda k, q, usual: torch.ones_like(usual)),
        "window of 48": build(lambda k, q, usual: usual & (k > q - 48)),
    }
""")
right("08.6", "triu for the window", """
def three_masks():
    usual = modeling_gemma.make_attn_mask
    def window(input_mask, mask_ar, num_queries=None):
        T = input_mask.shape[1]
        near = torch.ones(T, T, dtype=torch.bool).triu(diagonal=-47)
        return usual(input_mask, mask_ar, num_queries) & near[T - (num_queries or T):]
    return {
        "causal": lambda i, m, n=None: usual(i, m.new_ones(m.shape), n),
        "everything": lambda i, m, n=None: usual(i, 0 * m, n),
        "window of 48": window,
    }
""")
M86 = right("08.6", "as most write it", """
def three_masks():
    def causal(input_mask, mask_ar, num_queries=None):
        return modeling_gemma.make_attn_mask(input_mask, torch.ones_like(mask_ar), num_queries)

    def everything(input_mask, mask_ar, num_queries=None):
        return modeling_gemma.make_attn_mask(input_mask, torch.zeros_like(mask_ar), num_queries)

    def window(input_mask, mask_ar, num_queries=None):
        allowed = modeling_gemma.make_attn_mask(input_mask, mask_ar, num_queries)
        L, T = allowed.shape[1:]
        query = torch.arange(T - L, T)[:, None]
        key = torch.arange(T)
        return allowed & (query - key < 48)

    return {"causal": causal, "everything": everything, "window of 48": window}
""")
change("08.6", "window of 49", M86, ("< 48", "<= 48"), says="the pairs that lie further apart than the window")
change("08.6", "both sides", M86, ("query - key < 48", "(query - key).abs() < 48"), says="tokens that lie 48 or more places *behind* the one")
change("08.6", "queries from 0", M86, ("torch.arange(T - L, T)[:, None]", "torch.arange(L)[:, None]"), says="nothing is hidden: the places of the queries are")
change("08.6", "rule left out", M86, ("allowed & (query - key < 48)", "(query - key < 48).expand_as(allowed)"), says="pairs are allowed that the usual rule does not")
change("08.6", "num_queries forgotten in causal", M86, ("torch.ones_like(mask_ar), num_queries)", "torch.ones_like(mask_ar))"), says="`causal`: the shape is [B=2, T=60, T=60],")
change("08.6", "causal and everything exchanged", M86, ("""ones_like(mask_ar), num_queries)

    def everything(input_mask, mask_ar, num_queries=None):
        return modeling_gemma.make_attn_mask(input_mask, torch.zero""", """zeros_like(mask_ar), num_queries)

    def everything(input_mask, mask_ar, num_queries=None):
        return modeling_gemma.make_attn_mask(input_mask, torch.one"""), says="'causal' and 'everything' are exchanged: ones in")
change("08.6", "causal without padding", M86, ("return modeling_gemma.make_attn_mask(input_mask, torch.ones_like(mask_ar), num_queries", """B, T = input_mask.shape
        L = T if num_queries is None else num_queries
        return torch.ones(T, T).tril().bool()[T - L :].expand(B, L, T"""), says="padding is seen by nobody, whatever else may be seen")
change("08.6", "everything without padding", M86, ("return modeling_gemma.make_attn_mask(input_mask, torch.zeros_like(mask_ar), num_queries", """B, T = input_mask.shape
        return torch.ones(B, num_queries or T, T, dtype=torch.bool"""), says="padding is seen by nobody, whatever else may be seen")
change("08.6", "in place", M86, ("torch.ones_like(mask_ar", "mask_ar.fill_(1"), says="make a new tensor instead (torch.ones_like, for")
change("08.6", "causal window", M86, ("k(input_mask, mask_ar", "k(input_mask, torch.ones_like(mask_ar)"), says="later tokens are hidden: of what the usual rule")
wrong("08.6", "masks instead of functions", """
def three_masks():
    T = 80
    causal = torch.ones(1, T, T).tril().bool()
    return {"causal": causal, "everything": torch.ones(1, T, T).bool(), "window of 48": causal.triu(-47)}
""", says="'causal': a Tensor, expected a function")
change("08.6", "window on the wrong side", M86, ("query - key < 48", "key - query < 48"), says="the window lies on the wrong side: what goes is")
change("08.6", "the last 48 of all", M86, ("query - key < 48", "key >= T - 48"), says="tokens within the window are hidden: for each row,")
