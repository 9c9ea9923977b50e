"""Chapter 08: attention masks and grouped-query attention."""

import torch

from .. import swap as swap_module
from ..kv_cache import KVCache
from ..modeling_gemma import (
    GemmaAttention,
    GemmaConfig,
    GemmaRotaryEmbedding,
    additive_mask,
    apply_rotary_pos_emb,
    make_attn_mask,
    repeat_kv,
)
from .checking import explain_error, with_weights
from .comparing import copy, same_inputs
from .exposing import exposing_task
from .tasks import Case, Finding, Found, Mistake, Prediction, Task, faults_left, larger, numbers
from .watching import draw_kept, trained, words_kept

# --- 08.1 --------------------------------------------------------------------------------------------------------

# img img prompt answer answer: where steps begin, for each kind of mask
STEPS = {"causal": (1, 1, 1, 1, 1), "full": (0, 0, 0, 0, 0), "prefix-LM": (0, 0, 0, 1, 1), "padded": (0, 0, 0, 1, 1)}


def table(mask_ar, real=(1, 1, 1, 1, 1)):
    """Row by row: 1 where the key's step is not later than the query's, and the key is a token."""
    step = [sum(mask_ar[: place + 1]) for place in range(len(mask_ar))]
    return [
        [int(step[key] <= step[query] and real[key] == 1) for key in range(len(step))] for query in range(len(step))
    ]


def fill_in():
    return {kind: table(steps, (int(kind != "padded"), 1, 1, 1, 1)) for kind, steps in STEPS.items()}


def as_tensors(function):
    """The learner's tables as tensors, so that messages can say where they differ."""
    tables = function()
    if not isinstance(tables, dict):
        return tables
    result = {}
    for kind, rows in tables.items():
        try:
            result[kind] = torch.as_tensor(rows).bool()
        except (TypeError, ValueError):  # rows of unequal length
            result[kind] = rows
    return result


def filled(change, kinds=tuple(STEPS)):
    """The tables with some of them changed."""

    def function():
        tables = {kind: torch.tensor(rows) for kind, rows in fill_in().items()}
        return {kind: change(rows) if kind in kinds else rows for kind, rows in tables.items()}

    return function


def stepped(mask_ar, kinds=("prefix-LM", "padded")):
    """The tables with other steps in some of them; padding is seen by nobody."""

    def function():
        changed = {kind: table(mask_ar, (int(kind != "padded"), 1, 1, 1, 1)) for kind in kinds}
        return {**fill_in(), **changed}

    return function


def without_diagonal(rows):
    return rows * (1 - torch.eye(5, dtype=rows.dtype))


def row_emptied(rows):
    return torch.cat([torch.zeros_like(rows[:1]), rows[1:]])


def fill_cases(seed):
    yield Case(sizes={"T": 5}, note="five tokens")


def print_mask(allowed, names):
    for name, row in zip(names, allowed, strict=True):
        print(f"  {name:6}  " + " ".join("■" if seen else "·" for seen in row))


def show_tables(thing):
    print("  padded:")
    print_mask(torch.as_tensor(thing()["padded"]).bool().tolist(), ("pad", "img", "prompt", "answer", "answer"))


FILL = Task(
    id="08.1",
    importance="core",
    title="fill in four masks",
    points=2,
    minutes=8,
    level="easy",
    reference=fill_in,
    cases=fill_cases,
    use=as_tensors,
    gradients=False,
    see='chapter 08, "By hand"; the hints of this task',
    reward=show_tables,
    mistakes=[
        Mistake("upside down", "each table has 1 where it should have 0: 1 is for what may be seen",
                filled(lambda rows: 1 - rows)),
        Mistake(
            "rows and columns swapped",
            "your tables are the expected ones mirrored at the diagonal: a row is for the token that looks, a column "
            "for the one that is looked at",
            filled(lambda rows: rows.T),
        ),
        Mistake(
            "causal where prefix-LM",
            "your prefix-LM is causal everywhere: picture and prompt are given as a whole, and may see each other",
            stepped((1, 1, 1, 1, 1)),
        ),
        Mistake(
            "causal where prefix-LM",
            "your prefix-LM is causal everywhere: picture and prompt are given as a whole, and may see each other",
            stepped((1, 1, 1, 1, 1), ("prefix-LM",)),
        ),
        Mistake(
            "rows and columns swapped",
            "your causal table is mirrored at the diagonal: a row is for the token that looks, and it sees those "
            "before",
            filled(lambda rows: rows.T, ("causal",)),
        ),
        Mistake(
            "causal where prefix-LM",
            "your last table is causal: it is the prefix-LM again, with an empty column for the padding",
            stepped((1, 1, 1, 1, 1), ("padded",)),
        ),
        *(
            Mistake(
                "prompt causal",
                f"in your table {kind!r} the prompt is a step of its own, so that the picture cannot see it: it "
                "belongs to the prefix",
                stepped((0, 0, 1, 1, 1), (kind,)),
            )
            for kind in ("prefix-LM", "padded")
        ),
        *(
            Mistake(
                "answer in one step",
                f"in your table {kind!r} the first token of the answer sees the second, which is a later step",
                stepped((0, 0, 0, 1, 0), (kind,)),
            )
            for kind in ("prefix-LM", "padded")
        ),
        Mistake("full where prefix-LM", "your picture and prompt see the answer, and the answer its own future",
                stepped((0, 0, 0, 0, 0))),
        Mistake(
            "prompt causal",
            "your prompt is a step of its own, so that the picture cannot see it: it belongs to the prefix",
            stepped((0, 0, 1, 1, 1)),
        ),
        Mistake(
            "answer in one step",
            "the two tokens of your answer see each other: they are written one after the other",
            stepped((0, 0, 0, 1, 0)),
        ),
        Mistake("diagonal missing", "your tokens do not see themselves: a step is not later than itself",
                filled(without_diagonal)),
        Mistake("diagonal missing", "in your causal mask tokens do not see themselves: a step is not later than itself",
                filled(without_diagonal, ("causal",))),
        Mistake("padding attended", "in your last table the padding is looked at: its column should be empty",
                filled(lambda rows: torch.tensor(table(STEPS["padded"])), ("padded",))),
        Mistake(
            "padding attended",
            "in your last table the row of the padding is empty, and its column is not: it matters who is looked at, "
            "not who looks",
            filled(lambda rows: row_emptied(torch.tensor(table(STEPS["padded"]))), ("padded",)),
        ),
        Mistake(
            "padding's row emptied",
            "in your last table the padding sees nothing. The rule takes away its column and leaves its row, and an "
            "empty row is what makes NaN",
            filled(row_emptied, ("padded",)),
        ),
    ],
)  # fmt: skip

# --- 08.2 --------------------------------------------------------------------------------------------------------


def mask_by_loops(input_mask, mask_ar, num_queries=None):
    B, T = mask_ar.shape
    rows = [table(mask_ar[b].tolist(), input_mask[b].tolist()) for b in range(B)]
    return torch.tensor(rows).bool()[:, T - (num_queries or T) :]


def mask_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "T": 7}
    ones = torch.ones(2, 7, dtype=torch.int64)
    prefix = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]])
    yield Case((ones, prefix), sizes=sizes, note="prefix-LM")
    padded = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
    yield Case((padded, prefix), sizes=sizes, note="prefix-LM, one row padded on the left and one on the right")
    yield Case((padded, prefix, 3), sizes={**sizes, "L": 3}, note="num_queries = 3")
    yield Case((ones, torch.ones_like(ones), 1), sizes=sizes, note="causal, num_queries = 1")
    generator = torch.Generator().manual_seed(30 + seed)
    mixed = torch.randint(0, 2, (2, 4, 9 + k), generator=generator)
    yield Case((mixed[0], mixed[1]), sizes={"B": 4, "T": 9 + k}, note="steps and padding anywhere")


def rule(compare=lambda key, query: key <= query, step=lambda ar: ar.cumsum(-1), padding=lambda m, L: m[:, None, :],
         last=True):  # fmt: skip
    """The rule with one thing in it done differently."""

    def function(input_mask, mask_ar, num_queries=None):
        T = mask_ar.shape[1]
        L = num_queries or T
        steps = step(mask_ar)
        query = steps[:, T - L :, None] if last else steps[:, :L, None]
        return compare(steps[:, None, :], query) & padding(input_mask.bool(), L)

    return function


def keys_cut(input_mask, mask_ar, num_queries=None):
    L = num_queries or mask_ar.shape[1]
    return make_attn_mask(input_mask, mask_ar, L)[:, :, -L:]


def queries_by_themselves(input_mask, mask_ar, num_queries=None):
    """The queries are cut off before their steps are added up."""
    L = num_queries or mask_ar.shape[1]
    query = mask_ar[:, -L:].cumsum(-1)
    return (mask_ar.cumsum(-1)[:, None] <= query[..., None]) & input_mask.bool()[:, None]


def padding_in_the_steps(input_mask, mask_ar, num_queries=None):
    """Padding starts no step, and is seen all the same."""
    return rule(padding=lambda real, L: torch.ones_like(real)[:, None])(input_mask, mask_ar * input_mask, num_queries)


def either(input_mask, mask_ar, num_queries=None):
    return rule()(torch.ones_like(input_mask), mask_ar, num_queries) | input_mask.bool()[:, None]


def show_rule(thing):
    names = ("image", "image", "prompt", "answer", "answer")
    print_mask(thing(torch.ones(1, 5).long(), torch.tensor([[0, 0, 0, 1, 1]]))[0].tolist(), names)


RULE = Task(
    id="08.2",
    importance="core",
    from_memory=True,
    title="one rule for every mask",
    points=3,
    minutes=12,
    level="medium",
    reference=mask_by_loops,
    cases=mask_cases,
    gradients=False,
    see='chapter 08, "One rule for every mask"; the hints of this task',
    reward=show_rule,
    mistakes=[
        Mistake(
            "upside down",
            "each entry is the opposite of the expected one: True is for what may be seen",
            lambda *inputs: ~mask_by_loops(*inputs),
        ),
        Mistake(
            "upside down",
            "the steps are compared as \"later than\": that is what may *not* be seen, and padding is still taken out",
            rule(lambda key, query: key > query),
        ),
        Mistake(
            "comparison turned round",
            "your tokens see what comes later, and not what came before: which of the two steps belongs to the row?",
            rule(lambda key, query: key >= query),
        ),
        Mistake(
            "own step not seen",
            "your tokens see earlier steps only, not their own: they do not even see themselves",
            rule(lambda key, query: key < query),
        ),
        Mistake(
            "own step only", "your tokens see their own step and none before it", rule(lambda key, query: key == query)
        ),
        Mistake(
            "cumsum forgotten",
            "zeros and ones themselves are compared: then all tokens of an answer see each other",
            rule(step=lambda ar: ar),
        ),
        Mistake(
            "cumsum over the rows", "the steps are added up over the rows of the batch, and not along the tokens",
            rule(step=lambda ar: ar.cumsum(0)),
        ),
        Mistake(
            "causal where prefix-LM",
            "your mask is causal, whatever `mask_ar` says: each token sees itself and those before it",
            rule(step=lambda ar: torch.ones_like(ar).cumsum(-1)),
        ),
        Mistake(
            "all see all", "every token sees every other, whatever `mask_ar` says", rule(step=torch.zeros_like)
        ),
        Mistake(
            "padding attended", "padding can be seen: `input_mask` has no effect",
            rule(padding=lambda real, L: torch.ones_like(real)[:, None, :]),
        ),
        Mistake(
            "padding attended",
            "padding cannot look, and can be seen: `input_mask` lies along the rows. It matters who is looked at",
            rule(padding=lambda real, L: real[:, -L:, None]),
        ),
        Mistake(
            "either",
            "`|` lets a pair through that has one of the two: every real token is seen by all. Both are needed, the "
            "step and a token that is real",
            either,
        ),
        Mistake(
            "padding only", "padding is seen, and what is real is not: `input_mask` is 0 for padding",
            rule(padding=lambda real, L: ~real[:, None]),
        ),
        Mistake(
            "padding of the first row", "the padding of the first row of the batch is taken for all rows",
            rule(padding=lambda real, L: real[:1, None]),
        ),
        Mistake(
            "padding attended",
            "`input_mask` changes the steps, and padding can still be seen: it takes whole columns out",
            padding_in_the_steps,
        ),
        Mistake(
            "queries cut too early",
            "the queries are cut off before their steps are added up, so that theirs begin at 0 again: first the sum "
            "over all tokens, then the last ones of it",
            queries_by_themselves,
        ),
        Mistake(
            "padding's row emptied",
            "padding can neither be seen nor look: rows without any True are what makes NaN",
            rule(padding=lambda real, L: real[:, None, :] & real[:, -L:, None]),
        ),
        Mistake(
            "first queries instead of last",
            "with `num_queries` the first rows come back: those that ask are the new tokens, at the end",
            rule(last=False),
        ),
        Mistake(
            "num_queries not used", "all rows come back, whatever `num_queries` says",
            lambda input_mask, mask_ar, num_queries=None: mask_by_loops(input_mask, mask_ar),
        ),
        Mistake(
            "keys cut too",
            "with `num_queries` the columns are cut as well: the new tokens look at all tokens, the old ones too",
            keys_cut,
        ),
    ],
)  # fmt: skip

# --- 08.3 --------------------------------------------------------------------------------------------------------

FAULTS = {  # what can be observed of each, and its name
    "upside": ("what may be seen is forbidden, and what is forbidden is seen", "upside down"),
    "infinite": ("a query that may see nothing gets NaN: 0 divided by 0", "NaN where nothing may be seen"),
    "axis": (
        "the weights that a *key* gets sum to 1, instead of those that a query gives",
        "softmax over the wrong axis",
    ),
}


def masked_weights(scores, allowed, faults=(), low=None, axis=-1):
    """A softmax of its own, in float64. A query that may see nothing looks at all keys alike."""
    forbidden = allowed[:, None] if "upside" in faults else ~allowed[:, None]
    low = low if low is not None else torch.finfo(scores.dtype).min
    low = -torch.inf if "infinite" in faults else low
    masked = scores.masked_fill(forbidden, low).double()
    return masked.softmax(-2 if "axis" in faults else axis).to(scores.dtype)


def weight_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "H": 3, "L": 5, "T": 7 + k}
    allowed = torch.rand(2, 5, 7 + k, generator=torch.Generator().manual_seed(seed)) < 0.6
    allowed[:, torch.arange(5), torch.arange(5)] = True
    yield Case((numbers(seed, 2, 3, 5, 7 + k, scale=2.0), allowed), sizes=sizes)
    nothing = allowed.clone()
    nothing[1, 0], nothing[1, 1] = False, True
    nothing[0, :, 6], nothing[0, :, 2] = False, True  # a key that nobody may see, and one that all may see
    note = "in the second row, the first query may see nothing and the next one everything"
    yield Case((numbers(seed, 2, 3, 5, 7 + k, scale=5.0), nothing), sizes=sizes, note=note)
    scores = numbers(seed, 2, 3, 5, 7 + k, dtype=torch.float16)
    yield Case((scores, nothing), sizes=sizes, note=f"float16, {note}")
    square = torch.ones(2, 4, 4).tril().bool()
    square[1, 3, 0] = False
    yield Case((numbers(seed, 2, 3, 4, 4), square), sizes={"B": 2, "H": 3, "T": 4}, note="as many queries as keys")


def after_the_softmax(scores, allowed):
    return scores.softmax(-1) * allowed[:, None]


def divided_again(scores, allowed):
    weights = after_the_softmax(scores, allowed)
    return weights / weights.sum(-1, keepdim=True)


def nothing_for_the_blind(scores, allowed):
    """A query that may see nothing gives no weight to anything."""
    return masked_weights(scores, allowed) * allowed[:, None]


def forbidden_gets_weight(case, got, want) -> Finding | None:
    """By a number that is not low enough."""
    forbidden = ~case.inputs[1][:, None] & case.inputs[1][:, None].any(-1, keepdim=True)
    most = float((got * forbidden).max())
    if not most > 0 or not torch.allclose(got.sum(-1).float(), torch.ones(got.shape[:-1]), atol=1e-2):
        return None
    return Finding("forbidden gets weight", f"what a query may not see gets a weight of up to {most:.2g}, not 0",
                   "is the right place filled in, and with a number that is low enough for any score?")  # fmt: skip


def too_low(scores, allowed):
    return scores.masked_fill(~allowed[:, None], -1e9).softmax(-1)


def no_heads(scores, allowed):
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1)


def show_weights(thing):
    scores = torch.tensor([[[[2.0, 1.0, 3.0]] * 3]])
    allowed = torch.tensor([[[True, True, False], [True, True, True], [False, False, False]]])
    for seen, row in zip(allowed[0].tolist(), thing(scores, allowed)[0, 0].tolist(), strict=True):
        print("  may see " + " ".join("■" if one else "·" for one in seen) + "   looks", *(f"{w:.2f}" for w in row))


WEIGHTS = Task(
    id="08.3",
    importance="core",
    title="find what is upside down",
    points=3,
    minutes=12,
    level="medium",
    reference=masked_weights,
    cases=weight_cases,
    gradients=False,
    symptoms=[forbidden_gets_weight],
    see='chapter 08, "From yes and no to numbers"; the hints of this task',
    reward=show_weights,
    mistakes=[
        *faults_left(FAULTS, lambda some: lambda scores, allowed: masked_weights(scores, allowed, some)),
        Mistake(
            "masked after the softmax",
            "the weights are set to zero after the softmax, so that those that remain no longer sum to 1",
            after_the_softmax,
        ),
        Mistake(
            "NaN where nothing may be seen",
            "the weights that remain are divided by their sum, which is 0 for a query that may see nothing",
            divided_again,
        ),
        Mistake(
            "nothing for the blind",
            "a query that may see nothing gives no weight at all: its weights are to sum to 1 as well, and all keys to "
            "get the same",
            nothing_for_the_blind,
        ),
        Mistake(
            "mask of the first row", "the mask of the first row of the batch is taken for all rows",
            lambda scores, allowed: masked_weights(scores, allowed[:1].expand(allowed.shape)),
        ),
        Mistake(
            "mask transposed",
            "the mask is transposed: its rows are the queries already, as those of the scores are",
            lambda scores, allowed: masked_weights(
                scores, allowed.transpose(1, 2) if allowed.shape[1] == allowed.shape[2] else allowed
            ),
        ),
        Mistake(
            "score of zero",
            "forbidden scores become 0 or nearly, and a 0 gets a weight like any other score: e to the power of 0 is "
            "1. (`finfo.tiny` is the smallest number above 0, not the lowest)",
            lambda scores, allowed: masked_weights(scores, allowed, low=0.0),
        ),
        Mistake("too low for float16", "float16 ends at -65504: the lowest number depends on the dtype", too_low),
        Mistake(
            "not broadcast over heads",
            "`allowed` has no axis for the heads, so that its rows of the batch meet the heads of the scores",
            no_heads,
        ),
        Mistake("softmax over the wrong axis", "the softmax runs over the heads",
                lambda scores, allowed: masked_weights(scores, allowed, axis=1)),
    ],
)  # fmt: skip

# --- 08.4 --------------------------------------------------------------------------------------------------------


def grouped(query, key, value, allowed):
    """query [H, L, d], key and value [H_kv, T, d], allowed [L, T] bool -> [H, L, d]: attention with shared heads."""
    groups = len(query) // len(key)
    key, value = key.repeat_interleave(groups, dim=0), value.repeat_interleave(groups, dim=0)
    scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    return scores.masked_fill(~allowed, -1e9).softmax(-1) @ value


def tiled(query, key, value, allowed):
    groups = len(query) // len(key)
    return grouped(query, key.repeat(groups, 1, 1), value.repeat(groups, 1, 1), allowed)


def mask_transposed(query, key, value, allowed):
    square = allowed.shape[0] == allowed.shape[1]
    return grouped(query, key, value, allowed.T if square else allowed)


def no_scale(query, key, value, allowed):
    return grouped(query * query.shape[-1] ** 0.5, key, value, allowed)


def always_causal(query, key, value, allowed):
    L, T = allowed.shape
    return grouped(query, key, value, allowed & torch.ones(L, T).tril(T - L).bool())


def keys_averaged(query, key, value, allowed):
    return grouped(query, key, key, allowed)


WRONG_VERSIONS = {
    version.__name__: version for version in (tiled, mask_transposed, no_scale, always_causal, keys_averaged)
}


def exposing_groups():
    one = torch.ones(1, 1).bool()
    two_heads = torch.tensor([1.0, 2.0]).reshape(2, 1, 1)
    two_tokens = torch.tensor([1.0, 2.0]).reshape(1, 2, 1)
    wide = torch.stack([torch.zeros(4), torch.ones(4)])[None]  # [1, 2, 4]
    return {
        "tiled": (torch.zeros(4, 1, 1), two_heads, two_heads, one),
        "mask_transposed": (torch.zeros(1, 2, 1), two_tokens, two_tokens, torch.ones(2, 2).tril().bool()),
        "no_scale": (torch.ones(1, 1, 4), wide, wide, torch.ones(1, 2).bool()),
        "always_causal": (torch.zeros(1, 2, 1), two_tokens, two_tokens, torch.ones(2, 2).bool()),
        "keys_averaged": (torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1, 1), one),
    }


def not_for_groups(query, key, value, allowed) -> str | None:
    """Why this is no input for `grouped`, or None."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 3 or tensor.dtype != torch.float32:
            seen = f"{list(tensor.shape)} {tensor.dtype}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            return f"{name} is {seen}, expected a float32 tensor with 3 axes"
    if not isinstance(allowed, torch.Tensor) or allowed.dtype != torch.bool or allowed.ndim != 2:
        return "allowed is not a bool tensor with 2 axes"
    (H, L, d), (H_kv, T, _) = query.shape, key.shape
    shapes = f"query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}, allowed "
    shapes += str(list(allowed.shape))
    if 0 in (H, L, d, H_kv, T) or H % H_kv or key.shape[2] != d or value.shape != key.shape or allowed.shape != (L, T):
        return f"{shapes} do not fit as [H, L, d], [H_kv, T, d], [H_kv, T, d], [L, T] with H a multiple of H_kv"
    if T < L:
        return f"{shapes}: {L} queries and {T} keys, expected at least as many keys as queries"
    return None if allowed.any(1).all() else "a query may see nothing"


EXPOSE = exposing_task(
    id="08.4",
    title="five inputs that expose",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    right=grouped,
    wrong=WRONG_VERSIONS,
    reference=exposing_groups,
    usable=not_for_groups,
    see='chapter 08, "Fewer keys and values than queries"; the hints of this task',
    reward=lambda solution: print("  with one KV head, as in Gemma 2B, or one for each query head, `tiled` is right"),
)

# --- 08.5 --------------------------------------------------------------------------------------------------------


def config_of(D, H, H_kv, d):
    return GemmaConfig(
        hidden_size=D, num_attention_heads=H, num_key_value_heads=H_kv, head_dim=d, num_hidden_layers=2,
        attention="eager",
    )  # fmt: skip


def attention_cases(seed):
    k = larger(seed)
    config, sizes = config_of(20, 4, 2, 6), {"B": 3, "H": 4, "H_kv": 2, "L": 5, "d": 6, "D": 20}
    real = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    x = numbers(seed, 3, 5, 20)
    rope = GemmaRotaryEmbedding(6)(x, real.cumsum(-1).clamp(min=1))
    mask = additive_mask(make_attn_mask(real, torch.tensor([[0, 0, 0, 1, 1]] * 3)), x.dtype)
    yield Case((x, rope, mask), (config, 0), sizes, note="prefix-LM, padded")
    mild = numbers(seed + 40, 3, 1, 5, 5)
    yield Case((x, rope, mild), (config, 0), sizes, note="a mask of ordinary numbers, to be added")
    config, sizes = config_of(10 + k, 6, 3, 4), {"B": 2, "H": 6, "H_kv": 3, "L": 7 + k, "d": 4, "D": 10 + k}
    x = numbers(seed + 1, 2, 7 + k, 10 + k)
    rope = GemmaRotaryEmbedding(4)(x, torch.arange(1, 8 + k).expand(2, 7 + k))
    yield Case((x, rope), (config, 0), sizes, note="without a mask")


class Steps(GemmaAttention):
    """The attention in steps, each of which a mistake replaces."""

    def split(self, x, heads):
        B, L, _ = x.shape
        return x.view(B, L, heads, self.head_dim).transpose(1, 2)

    def turn(self, query, key, value, rope):
        return *apply_rotary_pos_emb(query, key, *rope), value

    def share(self, x):
        return repeat_kv(x, self.num_key_value_groups)

    def weigh(self, query, key, mask):
        scores = query @ key.transpose(2, 3) * self.scale
        return (scores if mask is None else scores + mask).softmax(dim=-1)

    def mix(self, weights, value):
        return weights @ value

    def merge(self, heads):
        return heads.transpose(1, 2).flatten(2)

    def out(self, x):
        return self.o_proj(x)

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        query = self.split(self.q_proj(hidden_states), self.num_heads)
        key = self.split(self.k_proj(hidden_states), self.num_key_value_heads)
        value = self.split(self.v_proj(hidden_states), self.num_key_value_heads)
        query, key, value = self.turn(query, key, value, position_embeddings)
        if kv_cache is not None:
            key, value = kv_cache.update(key, value, self.layer_idx)
        weights = self.weigh(query, self.share(key), attention_mask)
        return self.out(self.merge(self.mix(weights, self.share(value)))), weights


def with_steps(**methods):
    return type("Variant", (Steps,), methods)


def scaled(power):
    def weigh(self, query, key, mask):
        scores = query @ key.transpose(2, 3) * power(self)
        return (scores if mask is None else scores + mask).softmax(dim=-1)

    return weigh


def masked(change, axis=-1):
    def weigh(self, query, key, mask):
        scores = query @ key.transpose(2, 3) * self.scale
        return (scores if mask is None else change(scores, mask, self.scale)).softmax(dim=axis)

    return weigh


def masked_late(self, query, key, mask):
    weights = (query @ key.transpose(2, 3) * self.scale).softmax(dim=-1)
    return weights if mask is None else weights + mask


def scores_returned(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
    output, _ = Steps.forward(self, hidden_states, position_embeddings, attention_mask, kv_cache)
    query = self.split(self.q_proj(hidden_states), self.num_heads)
    key = self.split(self.k_proj(hidden_states), self.num_key_value_heads)
    query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    scores = query @ self.share(key).transpose(2, 3) * self.scale
    return output, scores if attention_mask is None else scores + attention_mask


def values_from_keys(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
    query = self.split(self.q_proj(hidden_states), self.num_heads)
    key = self.split(self.k_proj(hidden_states), self.num_key_value_heads)
    query, turned = apply_rotary_pos_emb(query, key, *position_embeddings)
    weights = self.weigh(query, self.share(turned), attention_mask)
    return self.out(self.merge(self.mix(weights, self.share(key)))), weights


def exchanged(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
    query = self.split(self.q_proj(hidden_states), self.num_heads)
    key = self.split(self.v_proj(hidden_states), self.num_key_value_heads)
    value = self.split(self.k_proj(hidden_states), self.num_key_value_heads)
    query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    weights = self.weigh(query, self.share(key), attention_mask)
    return self.out(self.merge(self.mix(weights, self.share(value)))), weights


def shared_otherwise(keys, values):
    """Keys or values, or both, shared out as 0 1 0 1."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        def tiled(x):
            return x.repeat(1, self.num_key_value_groups, 1, 1)

        query = self.split(self.q_proj(hidden_states), self.num_heads)
        key = self.split(self.k_proj(hidden_states), self.num_key_value_heads)
        value = self.split(self.v_proj(hidden_states), self.num_key_value_heads)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        weights = self.weigh(query, tiled(key) if keys else self.share(key), attention_mask)
        return self.out(self.merge(self.mix(weights, tiled(value) if values else self.share(value)))), weights

    return forward


def always_causal(self, query, key, mask):
    scores = query @ key.transpose(2, 3) * self.scale
    later = torch.ones(scores.shape[-2:]).triu(1 + scores.shape[-1] - scores.shape[-2]).bool()
    return (scores.masked_fill(later, -1e9) if mask is None else scores + mask).softmax(dim=-1)


def query_cut_at_once(self, x, heads):
    if heads == self.num_heads and heads != self.num_key_value_heads:
        return x.reshape(x.shape[0], heads, x.shape[1], self.head_dim)
    return Steps.split(self, x, heads)


def works_with_a_cache(kind) -> Finding | None:
    """Fed in pieces with a cache, the tokens must come out as they do all at once."""
    config, where = config_of(20, 4, 2, 6), "layer 1 of 2, fed 3 tokens, then 1 and 1, with a cache: "
    attention, packaged = kind(config, 1), with_weights(Steps(config, 1))
    swap_module.take_over(attention, packaged)
    x, ones = numbers(77, 2, 5, 20), torch.ones(2, 5, dtype=torch.int64)
    real = ones.clone()
    real[1, 1] = 0  # in the second row a token that nobody may see, so that the mask matters to the last ones, too
    mask = additive_mask(make_attn_mask(real, ones), x.dtype)
    cos, sin = GemmaRotaryEmbedding(6)(x, ones.cumsum(-1))
    cache, pieces = KVCache(config, 2, 9), []
    try:
        with torch.no_grad():
            whole, _ = attention(x, (cos, sin), mask)
            for start, end in ((0, 3), (3, 4), (4, 5)):
                rope = cos[:, start:end], sin[:, start:end]
                output, _ = attention(x[:, start:end], rope, mask[:, :, start:end, :end], cache)
                finding = look_into(cache, start, where)
                if finding is not None:
                    return finding
                pieces.append(output)
                cache.advance(end - start)
    except Exception as error:
        finding = explain_error(error)
        means = "where does the cache come: before RoPE or after? before the heads are repeated or after?"
        if cache.length:
            means = "from the second piece on there are more keys than queries: is what comes back from `update` used, "
            means += "all keys and values so far? The mask has a column for each of them"
        return Finding(finding.name, where + finding.observed, means)
    gap = float((torch.cat(pieces, 1) - whole).abs().max())
    if gap < 1e-4:
        return None
    with torch.no_grad():
        key, value = (packaged.split(projection(x), 2) for projection in (packaged.k_proj, packaged.v_proj))
        turned, _ = apply_rotary_pos_emb(key, key, cos, sin)
    means = "what comes back from `update` is to be used for keys *and* values"
    if torch.allclose(cache.keys[1, :, :, :5], value, atol=1e-4):
        means = "the values stand where the keys belong: `update` takes the key first, then the value"
    elif torch.allclose(cache.keys[1, :, :, :5], turned, atol=1e-4) and mask_has_no_effect(attention, x, (cos, sin)):
        means = "keys and values are right in the cache; for a single query the mask has no effect: it is to be added "
        means += "whenever there is one"
    elif not torch.allclose(cache.keys[1, :, :, :5], turned, atol=1e-4):
        means = "the cache does not hold the turned keys: a token's position never changes, so RoPE comes before it"
    return Finding("cached differs", f"{where}outputs differ from those without a cache by {gap:.2g}", means)


def mask_has_no_effect(attention, x, rope) -> bool:
    """Of one query and more keys than that."""
    cache = KVCache(config_of(20, 4, 2, 6), len(x), 9)
    cos, sin = rope
    with torch.no_grad():
        attention(x[:, :3], (cos[:, :3], sin[:, :3]), None, cache)
        cache.advance(3)
        last = x[:, 3:4], (cos[:, 3:4], sin[:, 3:4])
        hidden = torch.zeros(len(x), 1, 1, 4)
        hidden[..., 0] = torch.finfo(x.dtype).min
        return torch.equal(attention(*last, hidden, cache)[0], attention(*last, 0 * hidden, cache)[0])


def look_into(cache, start: int, where: str) -> Finding | None:
    """What layer 1 has done with a cache that held `start` tokens."""
    if cache.length != start:
        saw = f"{where}after the layer's call the cache has moved on from {start} to {cache.length} tokens"
        return Finding("cache moved on", saw, "the model calls `advance`, once for all layers")
    if cache.keys[0].any():
        saw = f"{where}the keys were written into layer 0 of the cache"
        return Finding("layer_idx not used", saw, "each layer has a place of its own; its number is `layer_idx`")
    if not cache.keys[1].any():
        saw = f"{where}nothing was written into the cache"
        means = "keys and values go through `kv_cache.update`, which gives back all so far"
        return Finding("cache not used", saw, means)
    return None


def show_attention(kind):
    config = config_of(20, 4, 2, 6)
    attention = kind(config, 0)
    swap_module.take_over(attention, with_weights(GemmaAttention(config, 0)))
    x, ones = numbers(3, 1, 6, 20), torch.ones(1, 6, dtype=torch.int64)
    mask = additive_mask(make_attn_mask(ones, torch.tensor([[0, 0, 0, 0, 1, 1]])), x.dtype)
    rope = GemmaRotaryEmbedding(6)(x, ones.cumsum(-1))
    print("  four tokens of prefix, two of answer; ■ moves when another token is changed")
    with torch.no_grad():
        for token, name in ((5, "last of the answer"), (4, "first of the answer"), (3, "last of the prefix")):
            changed = x.clone()
            changed[:, token] += 1
            moved = (attention(changed, rope, mask)[0] - attention(x, rope, mask)[0])[0].abs().amax(-1) > 1e-6
            print(f"  {name:20}" + " ".join("■" if one else "·" for one in moved.tolist()))


ATTENTION = Task(
    id="08.5",
    importance="deepen",
    from_memory=True,
    title="GemmaAttention",
    points=5,
    minutes=25,
    level="hard",
    reference=GemmaAttention,
    cases=attention_cases,
    see='chapter 08, "GemmaAttention"; the hints of this task',
    reward=show_attention,
    extra=[works_with_a_cache],
    mistakes=[
        Mistake("scale forgotten", "the scores are not divided by the square root of the head size",
                with_steps(weigh=scaled(lambda self: 1.0))),
        Mistake("scale doubled", "the scores are divided by the head size: by its square root twice",
                with_steps(weigh=scaled(lambda self: 1 / self.head_dim))),
        Mistake("scale upside down", "the scores are multiplied by the square root of the head size",
                with_steps(weigh=scaled(lambda self: self.head_dim**0.5))),
        Mistake("scale of the width", "the scores are divided by the square root of the width D: it is the head size d "
                "that a product of query and key sums over",
                with_steps(weigh=scaled(lambda self: self.config.hidden_size**-0.5))),
        Mistake("softmax over the wrong axis", "the weights of a query do not sum to 1: the softmax runs over the "
                "queries", with_steps(weigh=masked(lambda scores, mask, scale: scores + mask, axis=-2))),
        Mistake("softmax over the wrong axis", "the softmax runs over the heads",
                with_steps(weigh=masked(lambda scores, mask, scale: scores + mask, axis=1))),
        Mistake("mask forgotten", "the mask has no effect", with_steps(weigh=masked(lambda s, mask, scale: s))),
        Mistake("mask added before scaling", "the mask is scaled together with the scores. With huge numbers nobody "
                "notices, until a mask holds smaller ones",
                with_steps(weigh=masked(lambda scores, mask, scale: scores + mask * scale))),
        Mistake("mask upside down", "the mask is subtracted: what is forbidden is all that is seen",
                with_steps(weigh=masked(lambda scores, mask, scale: scores - mask))),
        Mistake("mask multiplied", "the scores are multiplied by the mask: it is made to be added",
                with_steps(weigh=masked(lambda scores, mask, scale: scores * mask))),
        Mistake("masked after the softmax", "the mask is added to the weights, after the softmax",
                with_steps(weigh=masked_late)),
        Mistake("repeat instead of repeat_interleave", "the KV heads are shared out as 0 1 0 1, so that half of the "
                "query heads get those of another group",
                with_steps(share=lambda self, x: x.repeat(1, self.num_key_value_groups, 1, 1))),
        Mistake("repeat instead of repeat_interleave", "the keys are shared out as 0 1 0 1, and the values as 0 0 1 1: "
                "both belong in order", with_steps(forward=shared_otherwise(keys=True, values=False))),
        Mistake("repeat instead of repeat_interleave", "the values are shared out as 0 1 0 1, and the keys as 0 0 1 1: "
                "both belong in order", with_steps(forward=shared_otherwise(keys=False, values=True))),
        Mistake("causal without a mask", "without a mask yours is causal: then every token may see every other",
                with_steps(weigh=always_causal)),
        Mistake("mask read as yes and no", "the mask is read as 1 for what may be seen: it is a number to be added, "
                "and 0 leaves a score as it is",
                [with_steps(weigh=masked(lambda scores, mask, scale, low=low: scores.masked_fill(mask == 0, low)))
                 for low in (-1e9, -torch.inf, torch.finfo(torch.float32).min)]),
        Mistake("heads split without the transpose", "the queries are cut into [B, H, L, d] at once: numbers of "
                "different tokens are mixed. First [B, L, H, d], then a transpose",
                with_steps(split=query_cut_at_once)),
        Mistake("heads merged without the transpose", "the heads are merged while the axis of the heads still stands "
                "before that of the tokens: numbers of different tokens are mixed",
                with_steps(merge=lambda self, heads: heads.reshape(heads.shape[0], heads.shape[2], -1))),
        Mistake("heads split without the transpose", "the projections are cut into [B, heads, L, d] at once: numbers "
                "of different tokens are mixed. First [B, L, heads, d], then a transpose",
                with_steps(split=lambda self, x, heads: x.reshape(x.shape[0], heads, x.shape[1], self.head_dim))),
        Mistake("RoPE forgotten", "queries and keys are not turned: your attention does not know any order",
                with_steps(turn=lambda self, query, key, value, rope: (query, key, value))),
        Mistake("value turned too", "the values are turned as well: what a token hands over would depend on where it "
                "stands", with_steps(turn=lambda self, query, key, value, rope: (
                    *apply_rotary_pos_emb(query, key, *rope), apply_rotary_pos_emb(query, value, *rope)[1]))),
        Mistake("key not turned", "only the queries are turned",
                with_steps(turn=lambda self, query, key, value, rope: (
                    apply_rotary_pos_emb(query, key, *rope)[0], key, value))),
        Mistake("query not turned", "only the keys are turned",
                with_steps(turn=lambda self, query, key, value, rope: (
                    query, apply_rotary_pos_emb(query, key, *rope)[1], value))),
        Mistake("cos and sin swapped", "sine and cosine have changed places",
                with_steps(turn=lambda self, query, key, value, rope: (
                    *apply_rotary_pos_emb(query, key, *rope[::-1]), value))),
        Mistake("o_proj forgotten", "the heads lie side by side and are never mixed: the last projection is missing",
                with_steps(out=lambda self, x: x)),
        Mistake("keys as values", "the weights mix the keys: values have a projection of their own",
                with_steps(forward=values_from_keys)),
        Mistake("key and value swapped", "k_proj makes the values and v_proj the keys: the shapes are the same, the "
                "trained weights are not", with_steps(forward=exchanged)),
        Mistake("scores returned", "the second result are the scores; the weights are what the softmax makes of them",
                with_steps(forward=scores_returned)),
    ],
)  # fmt: skip

# --- 08.6 --------------------------------------------------------------------------------------------------------


def three_masks() -> dict:
    """Under each name a `make_attn_mask` that lets more or less be seen."""

    def causal(input_mask, mask_ar, num_queries=None):
        return make_attn_mask(input_mask, torch.ones_like(mask_ar), num_queries)

    def full(input_mask, mask_ar, num_queries=None):
        return make_attn_mask(input_mask, torch.zeros_like(mask_ar), num_queries)

    def window(input_mask, mask_ar, num_queries=None):
        allowed = make_attn_mask(input_mask, mask_ar, num_queries)  # [B, L, T]
        L, T = allowed.shape[1:]
        query, key = torch.arange(T - L, T)[:, None], torch.arange(T)
        return allowed & (query - key < 48)

    return {"causal": causal, "everything": full, "window of 48": window}


def apply_masks(solution, *inputs) -> dict[str, torch.Tensor]:
    given = solution()
    if not isinstance(given, dict) or set(given) != set(three_masks()):
        seen = f"the keys {sorted(map(str, given))}" if isinstance(given, dict) else f"a {type(given).__name__}"
        raise Found("structure", f"the result is {seen}, expected a dict with the keys {sorted(three_masks())}")
    for name, function in given.items():
        if not callable(function):
            raise Found("type", f"{name!r}: a {type(function).__name__}, expected a function")
    results = {}
    for name, function in given.items():
        own = copy(inputs)
        results[name] = function(*own)
        if not same_inputs(own, inputs):
            raise Found("input changed", f"{name!r} writes into the tensors that it is given",
                        "make a new tensor instead (torch.ones_like, for instance): the next mask is made of the same "
                        "ones")  # fmt: skip
    return results


def wide_mask_cases(seed):
    k = larger(seed)
    T = 60 + 3 * k
    ones, answer = torch.ones(2, T, dtype=torch.int64), torch.zeros(2, T, dtype=torch.int64)
    answer[0, 50:], answer[1, 55:] = 1, 1
    padded = ones.clone()
    padded[1, :4] = 0
    yield Case((ones, answer), sizes={"B": 2, "T": T}, note="a prefix of 50 and of 55")
    yield Case((padded, answer, 5), sizes={"B": 2, "T": T, "L": 5}, note="num_queries = 5, one row padded")


def apart(pairs) -> int:
    """How many places the nearest of these pairs [B, L, T] is apart, the key behind the query; -1 if one is not."""
    L, T = pairs.shape[1:]
    distance = (torch.arange(T) - torch.arange(T - L, T)[:, None]).expand(pairs.shape)
    return int(distance[pairs].min()) if pairs.any() else -1


def which_mask(case, got, want) -> Finding | None:
    names = [name for name in want if not torch.equal(got[name], want[name])]
    name, right = names[0], len(want) - len(names)
    if got[name].shape != want[name].shape:
        return None
    more, less = (got[name] & ~want[name]).sum(), (~got[name] & want[name]).sum()
    seen = f"{right} of {len(want)} masks are right; {name!r} allows {int(more)} pairs too many, {int(less)} too few"
    usual = make_attn_mask(*case.inputs)
    window = name == "window of 48"
    if window and more == 0 and not (got[name] & ~three_masks()["causal"](*case.inputs)).any():
        means = "later tokens are hidden: of what the usual rule allows, only what lies too far before goes"
    elif window and not torch.equal(got[name], want[name] & got[name]) and (got[name] & ~usual).any():
        means = "pairs are allowed that the usual rule does not allow: take what it allows, and of that away"
    elif window and more == 0 and apart(want[name] & ~got[name]) >= 48:
        means = "tokens that lie 48 or more places *behind* the one that looks are hidden, too: only those before it go"
    elif window and more == 0:
        means = "tokens within the window are hidden: for each row, count from the place of its own token"
    elif window and not less and torch.equal(got[name], usual):
        means = "nothing is hidden: the places of the queries are those of the last L of the T tokens"
    elif window and more and less and not (got[name] & ~usual).any():
        means = "the window lies on the wrong side: what goes is what lies 48 or more places before"
    elif {name} < set(names) and torch.equal(got[name], want[names[1]]) and torch.equal(got[names[1]], want[name]):
        means = f"{name!r} and {names[1]!r} are exchanged: ones in `mask_ar` start a step at every token, zeros none"
    elif window and not less and not (got[name] & ~usual).any():
        means = "the pairs that lie further apart than the window are still there, or one too many of them: itself "
        means += "and the 47 before it are 48"
    elif more and (got[name] & (case.inputs[0] == 0)[:, None]).any():
        means = "padding is seen by nobody, whatever else may be seen"
    else:
        means = "print it for five tokens, as in task 08.1"
    return Finding("another mask", seen, means)


def show_masked(solution):
    """How much of the captions the learner's masks leave."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so nothing can be measured.")
        return
    print("With your masks, captions of 24 that are as before, and words that are kept:")
    draw_kept({name: words_kept(make_attn_mask=part) for name, part in solution().items()})


MASKS = Task(
    id="08.6",
    title="three masks, measured",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    reference=three_masks,
    cases=wide_mask_cases,
    use=apply_masks,
    gradients=False,
    see='chapter 08, "What looking ahead is used for" and "Break it"; the hints of this task',
    symptoms=[which_mask],
    reward=show_masked,
    prediction=Prediction(
        "Captions of 24 that stay as they were:",
        truth=lambda: {name: words_kept(make_attn_mask=part)["captions"] for name, part in three_masks().items()},
        tempting={"causal": 24, "everything": 0, "window of 48": 0},
        why="A model that was trained with a picture that sees itself does not forgive a causal one. Allowing "
        "everything changes nothing here: while it writes, nothing later exists, and the prefix may see all of itself "
        "anyhow. It would be a disaster in training, where the answer could read itself. A window of 48 cuts off the "
        "beginning of the picture, 64 tokens long, from most of what comes later.",
    ),
)

TASKS = [FILL, RULE, WEIGHTS, EXPOSE, ATTENTION, MASKS]
