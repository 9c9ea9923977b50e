"""Chapter 03: attention."""

import inspect

import torch

from ..modeling_siglip import SiglipAttention, SiglipVisionConfig
from .exposing import matching_task
from .tasks import Case, Finding, Found, Mistake, Prediction, Task, larger, numbers, written_by_hand
from .watching import draw_in_hundredths, taken

# --- 03.1 --------------------------------------------------------------------------------------------------------


def softmax(x, dim):
    e = (x - x.amax(dim, keepdim=True)).exp()
    return e / e.sum(dim, keepdim=True)


def softmax_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "L": 3, "T": 5 + k}
    yield Case((numbers(seed, 2, 3, 5 + k), -1), sizes=sizes, note="dim = -1")
    yield Case((numbers(seed, 2, 3, 5 + k), 1), sizes=sizes, note="dim = 1")
    yield Case((numbers(seed, 2, 3, 5 + k, scale=1.0, shift=500.0), -1), sizes=sizes, note="about 500 in size")
    far = torch.tensor([0.0, -400.0, 300.0])[None, :, None]
    yield Case((numbers(seed, 2, 3, 5 + k) + far, -1), sizes=sizes, note="rows of very different size")
    masked = numbers(seed, 2, 3, 5 + k)
    masked[:, :, 3:] = -torch.inf
    yield Case((masked, -1), sizes=sizes, note="two places masked with minus infinity")


def masked_gets_weight(case, got, want) -> Finding | None:
    hidden = case.inputs[0] == -torch.inf
    if hidden.any() and float(got[hidden].abs().max()) > 1e-3:
        seen = f"a score of minus infinity gets a weight of {float(got[hidden].abs().max()):.2g}"
        return Finding(
            "masked gets weight", seen, "minus infinity is not to be replaced: its exponential is 0 by itself"
        )
    return None


def sums_in_numbers(case, got, want) -> Finding | None:
    """The weights along `dim` and what they sum to, if not to 1."""
    sums = got.sum(case.inputs[1])
    worst = sums[torch.unravel_index((sums - 1).abs().argmax(), sums.shape)]
    if (got < 0).any() or abs(float(worst) - 1) < 2e-5:
        return None
    seen = f"the weights along dim = {case.inputs[1]} sum to {float(worst):.4g} instead of 1"
    return Finding("weights do not sum to 1", seen, "is each exponential divided by the sum over the same axis, with "
                   "nothing added to that sum?")  # fmt: skip


def show_softmax(thing):
    for scores in ([1.0, 2.0, 3.0], [1001.0, 1002.0, 1003.0], [10.0, 20.0, 30.0]):
        weights = thing(torch.tensor([scores]), -1)[0].tolist()
        print(f"  scores {scores} -> weights {[round(weight, 3) for weight in weights]}")


SOFTMAX = Task(
    id="03.1",
    importance="core",
    title="a softmax that does not overflow",
    points=2,
    minutes=8,
    level="easy",
    reference=softmax,
    cases=softmax_cases,
    see='chapter 03, "A softmax that does not overflow"; the hints of this task',
    extra=[written_by_hand(("_softmax", "_log_softmax"), "torch's softmax", torch.ones(2, 3), -1)],
    symptoms=[masked_gets_weight, sums_in_numbers],
    reward=show_softmax,
    mistakes=[
        Mistake(
            "overflow",
            "the exponential of 500 is larger than any float32, and infinity over infinity is NaN. Adding the same "
            "number to all scores of a row leaves its weights alone: which number makes every exponential at most 1?",
            lambda x, dim: x.exp() / x.exp().sum(dim, keepdim=True),
        ),
        Mistake(
            "largest of everything",
            "the largest score of the whole tensor is subtracted: rows that lie far below it become zeros, and 0 / 0 "
            "is NaN",
            lambda x, dim: (x - x.max()).exp() / (x - x.max()).exp().sum(dim, keepdim=True),
        ),
        Mistake("dim unused", "the axis is fixed to the last one: `dim` says which", lambda x, dim: softmax(x, -1)),
        Mistake(
            "dim used once",
            "one of the two, the largest score and the sum, is taken over the last axis, whatever `dim` says",
            [
                lambda x, dim: (
                    (x - x.amax(dim, keepdim=True)).exp() / (x - x.amax(dim, keepdim=True)).exp().sum(-1, keepdim=True)
                ),
                lambda x, dim: (
                    (x - x.amax(-1, keepdim=True)).exp() / (x - x.amax(-1, keepdim=True)).exp().sum(dim, keepdim=True)
                ),
            ],
        ),
        Mistake(
            "clamped",
            "scores above a limit are cut down to it: two of them that differ get the same weight",
            lambda x, dim: x.clamp(max=80).exp() / x.clamp(max=80).exp().sum(dim, keepdim=True),
        ),
        Mistake(
            "other base",
            "your powers have the base 2: the formula has e",
            lambda x, dim: (
                (x - x.amax(dim, keepdim=True)).exp2() / (x - x.amax(dim, keepdim=True)).exp2().sum(dim, keepdim=True)
            ),
        ),
        Mistake(
            "largest without its sign",
            "the largest absolute value is subtracted: where it belongs to a negative score, all exponents are far "
            "below 0, all exponentials 0, and 0 / 0 is NaN",
            lambda x, dim: (
                (x - x.abs().amax(dim, keepdim=True)).exp()
                / (x - x.abs().amax(dim, keepdim=True)).exp().sum(dim, keepdim=True)
            ),
        ),
        Mistake("dim unused", "the axis is fixed: `dim` says which", lambda x, dim: softmax(x, 1)),
        Mistake("wrong axis", "the axis is fixed to the first: `dim` says which", lambda x, dim: softmax(x, 0)),
        Mistake(
            "sum over everything",
            "all weights of the tensor sum to 1, and not those of each row",
            lambda x, dim: (x - x.amax(dim, keepdim=True)).exp() / (x - x.amax(dim, keepdim=True)).exp().sum(),
        ),
        Mistake("logarithm", "your numbers are the logarithms of the weights", lambda x, dim: x.log_softmax(dim)),
        Mistake(
            "not divided",
            "the weights of a row do not sum to 1: the exponentials are not divided by their sum",
            lambda x, dim: (x - x.amax(dim, keepdim=True)).exp(),
        ),
        Mistake(
            "no exponential",
            "your numbers are those you get when the shifted scores themselves are divided by their sum",
            lambda x, dim: (x - x.amax(dim, keepdim=True)) / (x - x.amax(dim, keepdim=True)).sum(dim, keepdim=True),
        ),
        Mistake(
            "shifted in one place only",
            "the maximum is subtracted above the line and not below it, or the other way round",
            lambda x, dim: (x - x.amax(dim, keepdim=True)).exp() / x.exp().sum(dim, keepdim=True),
        ),
        Mistake(
            "smallest subtracted",
            "what you subtract is minus infinity in a masked row, as its smallest score and its mean are: -inf - -inf "
            "is NaN. And above the smallest the others may still overflow; the largest score does neither",
            [
                lambda x, dim: (
                    (x - x.amin(dim, keepdim=True)).exp() / (x - x.amin(dim, keepdim=True)).exp().sum(dim, keepdim=True)
                ),
                lambda x, dim: (
                    (x - x.mean(dim, keepdim=True)).exp() / (x - x.mean(dim, keepdim=True)).exp().sum(dim, keepdim=True)
                ),
            ],
        ),
    ],
)

# --- 03.2 --------------------------------------------------------------------------------------------------------


def attention(query, key, value, scale=None, axis=-1):
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = scores.softmax(axis)
    return weights @ value, weights


def scaled_by(scale):
    return lambda query, key, value: attention(query, key, value, scale(query, key))


def scaled_after(query, key, value):
    weights = (query @ key.transpose(-2, -1)).softmax(-1) * query.shape[-1] ** -0.5
    return weights @ value, weights


def linear_weights(query, key, value):
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    weights = scores / scores.sum(-1, keepdim=True)
    return weights @ value, weights


def scores_returned(query, key, value):
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return scores.softmax(-1) @ value, scores


def scores_used(query, key, value):
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return scores @ value, scores


def causal(query, key, value):
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
    return weights @ value, weights


def key_reshaped(query, key, value):
    scores = query @ key.reshape(*key.shape[:2], key.shape[3], key.shape[2]) * query.shape[-1] ** -0.5
    return scores.softmax(-1) @ value, scores.softmax(-1)


def scores_cut(query, key, value):
    weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).tril().softmax(-1)
    return weights @ value, weights


def heads_averaged(query, key, value):
    output, weights = attention(query, key, value)
    return output, weights.mean(1)


def attention_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "H": 3, "L": 5 + k, "T": 7 + 2 * k, "d": 4}
    query = numbers(seed, 2, 3, 5 + k, 4)
    key, value = (numbers(seed + extra, 2, 3, 7 + 2 * k, 4) for extra in (50, 100))
    yield Case((query, key, value), sizes=sizes)
    yield Case((3 * query, 2 * key, value + 1), sizes=sizes, note="larger scores")
    yield Case((query[:, :1, :1], key[:, :1], value[:, :1]), sizes={"B": 2, "T": 7 + 2 * k, "d": 4}, note="one query")


def rows_sum_to_one(case, got, want):
    if not isinstance(got, list | tuple) or len(got) != 2 or getattr(got[1], "shape", None) != want[1].shape:
        return None
    weights = got[1]
    sums = {axis: (weights.sum(axis) - 1).abs().max().item() for axis in range(weights.ndim)}
    if sums[weights.ndim - 1] > 1e-3:
        along = [axis for axis, gap in sums.items() if gap < 1e-4]
        saw = f"the weights of a query sum to 1 only within {sums[weights.ndim - 1]:.2g}"
        saw += f"; along axis {along[0]} they do sum to 1" if along else ""
        return Finding("weights do not sum to 1", saw, "the softmax runs over the wrong axis, or something comes after")
    return None


def scores_too_large(case, got, want) -> Finding | None:
    """The weights are those of scores that are all too large or too small by one factor."""
    mine, theirs = (pair[1].clamp(min=1e-30).log() for pair in (got, want))
    mine, theirs = (logs - logs.mean(-1, keepdim=True) for logs in (mine, theirs))  # scores, but for a number per row
    ratio = float((mine * theirs).sum() / theirs.square().sum())
    if (
        got[1].min() <= 1e-30
        or abs(ratio - 1) < 1e-2
        or not torch.allclose(mine, ratio * theirs, atol=1e-3 * max(abs(ratio), 1))
    ):
        return None
    seen = f"the weights are those of scores that are {ratio:.4g} times the right ones"
    return Finding("scale", seen, "by what are the scores divided? By the square root of d, the length of one query")


def show_attention(thing):
    query = torch.tensor([[[[2.0, 0.0]]]])
    key = torch.tensor([[[[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0]]]])
    value = torch.tensor([[[[1.0, 0.0], [10.0, 0.0], [100.0, 0.0]]]])  # as wide as the keys, as the task promises
    output, weights = thing(query, key, value)
    print("  a query that points east looks at keys to the east, north and west, with values 1, 10, 100:")
    shown = [round(weight, 3) for weight in weights.flatten().tolist()]
    print(f"  weights {shown}, output {output[0, 0, 0, 0].item():.2f}")


ATTENTION = Task(
    id="03.2",
    importance="core",
    title="scaled dot-product attention",
    points=3,
    minutes=10,
    level="easy",
    reference=attention,
    cases=attention_cases,
    see='chapter 03, "All queries at once" and "Why the scores are scaled"; the hints of this task',
    symptoms=[rows_sum_to_one, scores_too_large],
    reward=show_attention,
    mistakes=[
        Mistake(
            "softmax over the wrong axis",
            "your softmax runs over the queries: then each key hands out a total weight of 1, instead of each query",
            lambda query, key, value: attention(query, key, value, axis=-2),
        ),
        Mistake("softmax over the wrong axis", "your softmax runs over the heads",
                lambda query, key, value: attention(query, key, value, axis=1)),
        Mistake("softmax over the wrong axis", "your softmax runs over the batch",
                lambda query, key, value: attention(query, key, value, axis=0)),
        Mistake(
            "scale forgotten",
            "your numbers are those you get without the scale: scores grow with the head size, and the softmax "
            "becomes a hard choice",
            scaled_by(lambda query, key: 1.0),
        ),
        Mistake("scale doubled", "the scale is applied twice, or its root is forgotten",
                scaled_by(lambda query, key: 1 / query.shape[-1])),
        Mistake("scale upside down", "your scores are multiplied by what they should be divided by",
                scaled_by(lambda query, key: query.shape[-1] ** 0.5)),
        Mistake("scale by the wrong size", "the scale comes from the number of keys: the sum that makes up a score "
                "does not run over them", scaled_by(lambda query, key: key.shape[-2] ** -0.5)),
        Mistake("scale by the wrong size", "the scale comes from the number of queries",
                scaled_by(lambda query, key: query.shape[-2] ** -0.5)),
        Mistake("scale by the wrong size", "the scale comes from the width of all heads together",
                scaled_by(lambda query, key: (query.shape[-1] * query.shape[1]) ** -0.5)),
        Mistake("scale by the wrong size", "the scale comes from the number of heads",
                scaled_by(lambda query, key: query.shape[1] ** -0.5)),
        Mistake("scaled after the softmax", "the weights are scaled and not the scores: they no longer sum to 1",
                scaled_after),
        Mistake("sign", "your scores have the wrong sign: a query looks where its key is least alike",
                scaled_by(lambda query, key: -(query.shape[-1] ** -0.5))),
        Mistake("keys averaged", "what you average is the keys, not the values",
                lambda query, key, value: attention(query, key, key)),
        Mistake("key and value swapped", "your scores come from the values and your average from the keys",
                lambda query, key, value: attention(query, value, key)),
        Mistake("no softmax", "the scores are used as they are", scores_used),
        Mistake("scores returned", "the output is right; the second result are the scores, not the weights",
                scores_returned),
        Mistake("no exponential", "the scores are divided by their sum: some weights are negative", linear_weights),
        Mistake("causal", "later keys are hidden: nothing in a picture comes later", causal),
        Mistake("scores cut", "the scores of later keys are set to 0, and a score of 0 gets weight: no mask belongs "
                              "here",
                scores_cut),
        Mistake("key reshaped", "the keys are brought to [B, H, d, T] by `reshape`, which moves no number: a transpose "
                "exchanges the two axes", key_reshaped),
        Mistake("heads averaged", "the weights are averaged over the heads: each head's own are asked for",
                heads_averaged),
        Mistake("returned the other way round", "output and weights are returned in the other order",
                lambda query, key, value: attention(query, key, value)[::-1]),
        Mistake(
            "key not transposed",
            "a product of matrices needs the last axis of the first to be as long as the last but one of the second: "
            "here both are [tokens, d]",
            lambda query, key, value: query @ key,
        ),
        Mistake(
            "all axes reversed",
            "`.T` reverses every axis, heads and batch included: only two are to change places",
            lambda query, key, value: query @ key.permute(3, 2, 1, 0),
        ),
    ],
)  # fmt: skip

# --- 03.3 --------------------------------------------------------------------------------------------------------


def split_heads(x, num_heads):
    B, N, D = x.shape
    return x.reshape(B, N, num_heads, D // num_heads).permute(0, 2, 1, 3)


def merge_heads(x):
    B, H, N, d = x.shape
    return x.permute(0, 2, 1, 3).reshape(B, N, H * d)


def use_heads(pair, x, num_heads, heads):
    split, merge = pair
    arguments = [len(inspect.signature(function).parameters) for function in pair if inspect.isfunction(function)]
    if arguments == [1, 2]:
        raise Found("functions swapped", "the first function takes one argument and the second takes two",
                    "the pair is the other way round: (split_heads, merge_heads)")  # fmt: skip
    return {"split_heads": split(x, num_heads), "merge_heads": merge(heads)}


def heads_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "N": 5 + k, "D": 12 + 3 * k, "H": 3, "d": 4 + k}
    yield Case((numbers(seed, 2, 5 + k, 12 + 3 * k), 3, numbers(seed + 1, 2, 3, 5 + k, 4 + k)), sizes=sizes)
    sizes = {"B": 3, "N": 7, "D": 10, "H": 2, "d": 5}
    yield Case((numbers(seed, 3, 7, 10), 2, numbers(seed + 1, 3, 2, 7, 5)), sizes=sizes)


def plain_view_split(x, num_heads):
    return x.reshape(x.shape[0], num_heads, x.shape[1], -1)


def plain_view_merge(x):
    return x.reshape(x.shape[0], x.shape[2], -1)


def d_first_split(x, num_heads):
    B, N, D = x.shape
    return x.reshape(B, N, D // num_heads, num_heads).permute(0, 3, 1, 2)


def d_first_merge(x):
    B, H, N, d = x.shape
    return x.permute(0, 2, 3, 1).reshape(B, N, H * d)


def heads_not_moved(x, num_heads):
    return x.reshape(*x.shape[:2], num_heads, -1)


def tokens_last(x, num_heads):
    return split_heads(x, num_heads).transpose(-1, -2)


def not_merged(x):
    return x.transpose(1, 2)


def last_head_first(x):
    return merge_heads(x.flip(1))


def cut_into(heads):
    return lambda x, num_heads: split_heads(x, heads)


NUMBERS_STAY = (
    "`view` and `reshape` cut the numbers as they lie in memory and never move any: the axes are to be named in the "
    "order in which they lie, and exchanged in a second step"
)

HEADS = Task(
    id="03.3",
    prediction=Prediction(
        "Does `merge_heads(split_heads(x, H))` equal `x` for a wrong pair?",
        truth="for some",
        tempting="for none",
        why="A wrong pair whose halves undo each other passes the round trip: `view` there and `reshape` back, without "
        "any transpose, give back x and mix tokens and heads in between. The test that finds it looks at the middle.",
        options=("for none", "for some", "for all"),
    ),
    importance="core",
    title="split into heads, and merge",
    points=3,
    minutes=10,
    level="medium",
    reference=(split_heads, merge_heads),
    use=use_heads,
    cases=heads_cases,
    see='chapter 03, "Many heads"; the hints of this task',
    reward=lambda pair: show_heads(pair),
    mistakes=[
        Mistake("heads split without the transpose", NUMBERS_STAY, (plain_view_split, merge_heads)),
        Mistake("heads merged without the transpose", NUMBERS_STAY, (split_heads, plain_view_merge)),
        Mistake("split and merged without the transpose", NUMBERS_STAY + ". One undoes the other, so that a test of "
                "there and back sees nothing", (plain_view_split, plain_view_merge)),
        Mistake("heads and features exchanged", "neighbouring features go to different heads; a head is a run of "
                "neighbours", (d_first_split, d_first_merge)),
        Mistake("heads and features exchanged", "neighbouring features go to different heads in split_heads; a head "
                "is a run of neighbours", (d_first_split, merge_heads)),
        Mistake("heads and features exchanged", "merge_heads lays the heads between each other; they are to lie side "
                "by side", (split_heads, d_first_merge)),
        Mistake("heads not moved forward", "the heads are split and still come after the tokens",
                (heads_not_moved, merge_heads)),
        Mistake("tokens last", "the last two axes of split_heads are exchanged: that is the shape of a transposed key",
                (tokens_last, merge_heads)),
        Mistake("not merged", "merge_heads still returns four axes", (split_heads, not_merged)),
        Mistake("heads in reverse", "the last head comes first: head 0 has the first numbers of a token",
                [(split_heads, last_head_first), (lambda x, heads: split_heads(x, heads).flip(1), last_head_first),
                 (lambda x, heads: split_heads(x, heads).flip(1), merge_heads)]),
        Mistake("heads added", "merge_heads adds the heads up: they are to lie side by side, so that D is back again",
                [(split_heads, lambda x: x.sum(1)), (split_heads, lambda x: x.mean(1))]),
        Mistake("heads fixed", "the number of heads is fixed: it is an argument",
                [(cut_into(2), merge_heads), (cut_into(3), merge_heads), (cut_into(4), merge_heads)]),
        Mistake("functions swapped", "check takes the pair (split_heads, merge_heads) in this order",
                (merge_heads, split_heads)),
    ],
)  # fmt: skip


def show_heads(pair):
    split, merge = pair
    x = torch.arange(12.0).reshape(1, 2, 6)  # [B, N, D] = [1, 2, 6]
    print(f"  two tokens        {x[0].int().tolist()}")
    for head, part in enumerate(split(x, 3)[0].int().tolist()):
        print(f"  head {head} sees       {part}")
    print(f"  merged            {merge(split(x, 3))[0].int().tolist()}")


# --- 03.4 --------------------------------------------------------------------------------------------------------


class Variant(SiglipAttention):
    """The package's attention with a step done differently."""

    axis = -1
    names = ("q_proj", "k_proj", "v_proj")

    def factor(self):
        return self.head_dim**-0.5

    def split(self, x):
        return split_heads(x, self.num_heads)

    def merge(self, x):
        return merge_heads(x)

    def final(self, x):
        return self.out_proj(x)

    def forward(self, x):
        q, k, v = (self.split(getattr(self, name)(x)) for name in self.names)
        weights = (q @ k.transpose(-1, -2) * self.factor()).softmax(self.axis)
        return self.final(self.merge(weights @ v)), weights


class NoScale(Variant):
    def factor(self):
        return 1.0


class ScaleTwice(Variant):
    def factor(self):
        return 1 / self.head_dim


class ScaleOfAll(Variant):
    def factor(self):
        return (self.head_dim * self.num_heads) ** -0.5


class ScaleUpsideDown(Variant):
    def factor(self):
        return self.head_dim**0.5


class OverQueries(Variant):
    axis = -2


class OverHeads(Variant):
    axis = 1


class SplitWithout(Variant):
    def split(self, x):
        return plain_view_split(x, self.num_heads)


class MergeWithout(Variant):
    def merge(self, x):
        return plain_view_merge(x)


class BothWithout(SplitWithout):
    def merge(self, x):
        return plain_view_merge(x)


class Interleaved(Variant):
    def split(self, x):
        return d_first_split(x, self.num_heads)


class NoOutput(Variant):
    def final(self, x):
        return x


class QueryKey(Variant):
    names = ("k_proj", "q_proj", "v_proj")


class KeyForValue(Variant):
    names = ("q_proj", "k_proj", "k_proj")


class MergeInterleaved(Variant):
    def merge(self, x):
        return d_first_merge(x)


class WithResidual(Variant):
    def forward(self, x):
        output, weights = super().forward(x)
        return x + output, weights


def with_heads(number):
    class FixedHeads(Variant):
        def split(self, x):
            return split_heads(x, number)

        def factor(self):
            return (self.head_dim * self.num_heads // number) ** -0.5

    return FixedHeads


class OneHead(Variant):
    def split(self, x):
        return x[:, None]

    def merge(self, x):
        return x[:, 0]

    def forward(self, x):
        output, weights = super().forward(x)
        return output, weights.expand(-1, self.num_heads, -1, -1)


class OutputAlone(Variant):
    def forward(self, x):
        return super().forward(x)[0]


class WeightsFirst(Variant):
    def forward(self, x):
        return super().forward(x)[::-1]


class WeightsAveraged(Variant):
    def forward(self, x):
        output, weights = super().forward(x)
        return output, weights.mean(1)


class CausalVariant(Variant):
    def forward(self, x):
        q, k, v = (self.split(getattr(self, name)(x)) for name in self.names)
        output, weights = causal(q, k, v)
        return self.final(self.merge(output)), weights


def layer_cases(seed):
    k = larger(seed)
    for width, heads, side in ((12 + 3 * k, 3, 2), (10, 2, 3)):
        config = SiglipVisionConfig(hidden_size=width, num_attention_heads=heads, image_size=side * 4, patch_size=4,
                                    intermediate_size=8, num_hidden_layers=1, attention="eager")  # fmt: skip
        batch, tokens = (2, 5) if heads == 3 else (4, 7)
        sizes = {"B": batch, "N": tokens, "D": width, "H": heads, "d": width // heads}
        yield Case((numbers(seed, batch, tokens, width, scale=2.0),), (config,), sizes)


def show_head_maps(kind):
    """The picture with what one of its patches looks at, in each head of a layer, through the learner's class."""
    from ..swap import swap
    from ..visualize import show_attention_over_image
    from .watching import picture, trained

    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so there is no attention to be seen.")
        return
    import matplotlib.pyplot as plt

    model, processor = trained()
    image = picture(0)
    kept = []
    with swap(model, SiglipAttention=kind), torch.no_grad():
        module = model.vision_tower.vision_model.encoder.layers[-1].self_attn
        module.register_forward_hook(lambda module, inputs, outputs: kept.append(outputs[1]))
        module.attention = "eager"
        model.get_image_features(processor(text=["caption en"], images=[image])["pixel_values"])
    maps = kept[0][0]  # [H, N, N]
    side = round(maps.shape[-1] ** 0.5)
    patch = (2, 2)  # on the circle
    print("What the outlined patch looks at in the last layer of the trained encoder, through your class:")
    _, axes = plt.subplots(2, len(maps) // 2, figsize=(6.4, 5.2), layout="constrained")
    for head, ax in enumerate(axes.flat):
        weights = maps[head, patch[0] * side + patch[1]].reshape(side, side)
        show_attention_over_image(image, weights, patch=patch, title=f"head {head}", ax=ax)
        ax.set(xticks=[], yticks=[], xlabel="", ylabel="")


MODULE = Task(
    id="03.4",
    from_memory=True,
    prediction=Prediction(
        "The scale left out in all layers of the trained image encoder: how many of 24 captions stay as they were?",
        truth=lambda: taken(SiglipAttention=NoScale)["captions"],
        tempting=0,
        why="Without the scale the scores are 5.7 times as large (heads of 32 features), so each row of weights is "
        "sharper, and its largest weight stays where it was. Where attention was sharp already, little changes. That a "
        "model still says the right words on a picture proves nothing about its numbers.",
    ),
    importance="core",
    title="SiglipAttention",
    points=4,
    minutes=15,
    level="medium",
    reference=SiglipAttention,
    cases=layer_cases,
    see='chapter 03, "The finished class"; the hints of this task',
    reward=show_head_maps,
    mistakes=[
        Mistake("scale forgotten", "your numbers are those you get without the scale", NoScale),
        Mistake("scale doubled", "the scale is applied twice, or its root is forgotten", ScaleTwice),
        Mistake("scale by the wrong size", "the scale comes from the whole width: a head's scores sum over one head's "
                "features", ScaleOfAll),
        Mistake("scale upside down", "your scores are multiplied by what they should be divided by", ScaleUpsideDown),
        Mistake("softmax over the wrong axis", "your softmax runs over the queries: each query's own weights are to "
                "sum to 1", OverQueries),
        Mistake("softmax over the wrong axis", "your softmax runs over the heads", OverHeads),
        Mistake("heads split without the transpose", NUMBERS_STAY, SplitWithout),
        Mistake("heads merged without the transpose", NUMBERS_STAY, MergeWithout),
        Mistake("split and merged without the transpose", NUMBERS_STAY, BothWithout),
        Mistake("heads and features exchanged", "neighbouring features go to different heads; a head is a run of "
                "neighbours", Interleaved),
        Mistake("no output projection", "the heads lie side by side and are never mixed: one of the four linear maps "
                "is not used", NoOutput),
        Mistake("query and key swapped", "your scores are those of the keys as queries: the weights are of the "
                "transposed scores", QueryKey),
        Mistake("keys averaged", "what you average is the keys, not the values", KeyForValue),
        Mistake("one head", "your numbers are those of a single head as wide as the model",
                [OneHead, type("Wide", (OneHead,), {"factor": ScaleOfAll.factor})]),
        Mistake("heads and features exchanged", "the heads are laid between each other when they are merged: they are "
                "to lie side by side", MergeInterleaved),
        Mistake("heads fixed", "the number of heads is fixed: it stands in the configuration",
                [with_heads(number) for number in (1, 2, 3, 4)]),
        Mistake("residual", "what came in is added to the output: the residual belongs to the layer, not to the "
                "attention", WithResidual),
        Mistake("weights not returned", "the output alone is returned; the docstring asks for two things", OutputAlone),
        Mistake("returned the other way round", "the weights are returned first", WeightsFirst),
        Mistake("heads averaged", "the weights are averaged over the heads: each head's own are asked for",
                WeightsAveraged),
        Mistake("causal", "later patches are hidden: nothing in a picture comes later", CausalVariant),
    ],
)  # fmt: skip

# --- 03.5 --------------------------------------------------------------------------------------------------------


def looking_back(N, back):
    """Positions [N, N], one-hot, and two matrices [N, N] that make the head of token i look at token i - back."""
    w_q = torch.zeros(N, N)
    for i in range(back, N):
        w_q[i, i - back] = 20 * N**0.5  # after the scale of 1 / sqrt(d), the score is 20
    return torch.eye(N), w_q, torch.eye(N)


def always_eight(N, back):
    w_q = torch.zeros(N, N)
    for i in range(back, N):
        w_q[i, i - 8] = 20 * N**0.5  # below 8 the index counts from the end
    return torch.eye(N), w_q, torch.eye(N)


def look(solution, N, back) -> dict[str, torch.Tensor]:
    """How many tokens back each query looks most, and with which weight on the token `back` before it."""
    given = solution(N, back)
    if not isinstance(given, tuple | list) or len(given) != 3:
        raise Found("structure", f"the result is {type(given).__name__}, expected positions, w_q and w_k")
    for name, value in zip(("positions", "w_q", "w_k"), given, strict=True):
        if not isinstance(value, torch.Tensor) or value.ndim != 2:
            seen = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise Found("shape", f"{name} is {seen}, expected a tensor with two axes")
    positions, w_q, w_k = (value.detach().float() for value in given)
    if len(positions) != N or not w_q.shape == w_k.shape or positions.shape[1] != len(w_q):
        seen = ", ".join(str(list(value.shape)) for value in (positions, w_q, w_k))
        raise Found("shape", f"positions, w_q and w_k are {seen}, expected [N={N}, D], [D, d] and [D, d]")
    query, key = positions @ w_q, positions @ w_k
    weights = (query @ key.T / query.shape[-1] ** 0.5).softmax(-1)[back:]  # [N - back, N]
    tokens = torch.arange(back, N)
    right = weights[tokens - back, tokens - back]
    others = weights.scatter(1, (tokens - back)[:, None], 0.0).amax(-1)  # the largest weight on any other token
    return {"tokens back": tokens - weights.argmax(-1), "weight": right, "others": (others - 0.02).clamp(min=0)}


def where_it_looks(case, got, want) -> Finding | None:
    (N, back), seen = case.inputs, got["tokens back"]
    if not got["weight"].isfinite().all():
        return Finding("not finite", "the weights are NaN", "scores of infinity: finite ones of 20 or more are enough")
    uniform = ((got["weight"] - 1 / N).abs() < 1e-4).nonzero().flatten().tolist()
    if uniform:
        text = f"token {back + uniform[0]} gives each of the {N} tokens the same weight"
        return Finding("no preference", text, "all its scores are equal: is its query set, and not zero?")
    if ((seen + back) % N == 0).all():  # the last ones look ahead beyond the end, and so at the beginning
        return Finding("ahead", f"every query looks {back} tokens ahead", "query and key are exchanged")
    if (seen == 0).all():
        return Finding("at itself", "every query looks at itself", "queries and keys of one token are alike: shift one")
    if (seen == seen[0]).all() and seen[0] != back:
        direction = "back" if seen[0] > 0 else "ahead"
        text = f"every query looks {abs(int(seen[0]))} tokens {direction}, instead of {back} back"
        return Finding("elsewhere", text, "which column of the query's row has the number, and on what does it depend?")
    twofold = ((got["others"] + 0.02 - got["weight"]).abs() < 1e-3).nonzero().flatten().tolist()
    if twofold and got["weight"].min() > 0.1:
        text = f"token {back + twofold[0]} gives another token as much weight as the one {back} before it: "
        text += f"{float(got['weight'][twofold[0]]):.2g}"
        return Finding("two alike", text, "its query agrees with two keys: larger scores do not help there")
    if (seen != back).any():
        at = int((seen != back).nonzero()[0])
        text = f"{int((seen == back).sum())} of {len(seen)} queries look {back} back; that of token {back + at} looks "
        return Finding("elsewhere", text + f"at token {back + at - int(seen[at])}", "print query @ key.T for 4 tokens")
    weakest = float(got["weight"].min())
    return Finding(
        "too soft",
        f"every query looks most at the token {back} before it, with a weight of {weakest:.2g}; 0.99 is asked for",
        "larger scores make a sharper softmax: the score of the right token must be ahead by log(100 N) or so",
    )


def show_head(solution):
    """The learner's head over the patches of a picture: 8 back is the patch above."""
    import matplotlib.pyplot as plt

    positions, w_q, w_k = (value.detach().float() for value in solution(64, 8))
    query, key = positions @ w_q, positions @ w_k
    weights = (query @ key.T / query.shape[-1] ** 0.5).softmax(-1)
    print("64 patches, 8 in a row: 8 back is the patch above. Rows are queries, columns are keys:")
    _, ax = plt.subplots(figsize=(3.4, 3.4), layout="constrained")
    ax.imshow(weights, cmap="cividis", vmin=0, vmax=1)
    ax.set(xlabel="key", ylabel="query")
    plt.show()


BY_HAND = Task(
    id="03.5",
    title="a head that looks eight back",
    points=3,
    minutes=15,
    level="medium",
    importance="deepen",
    reference=looking_back,
    cases=lambda seed: [
        Case((12 + larger(seed), 8), note=f"N = {12 + larger(seed)}, back = 8"),
        Case((9 + 2 * larger(seed), 3), note=f"N = {9 + 2 * larger(seed)}, back = 3"),
    ],
    use=look,
    gradients=False,
    tolerance=5e-3,
    symptoms=[where_it_looks],
    see='chapter 03, "All queries at once"; the hints of this task',
    reward=show_head,
    mistakes=[
        Mistake(
            "ahead",
            "your head looks ahead instead of back: query and key are exchanged",
            lambda N, back: (torch.eye(N), torch.eye(N), looking_back(N, back)[1]),
        ),
        Mistake("back not used", "your head looks eight back, whatever `back` is", always_eight),
    ],
)

# --- 03.6 --------------------------------------------------------------------------------------------------------

MAPS = {
    "A": "softmax over the queries",
    "B": "scale left out",
    "C": "as it should be",
    "D": "causal",
    "E": "query and key exchanged",
    "F": "queries of zero",
}


def weights_of(name: str) -> torch.Tensor:
    """The attention weights [6, 6] of one head for the same six tokens, with this fault."""
    query, key = numbers(5, 6, 16, scale=1.3), numbers(6, 6, 16, scale=1.3)
    if name == "query and key exchanged":
        query, key = key, query
    if name == "queries of zero":
        query = 0 * query
    scores = query @ key.T * (1 if name == "scale left out" else 16**-0.5)
    if name == "causal":
        scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    return scores.softmax(0 if name == "softmax over the queries" else 1)


def show_maps() -> None:
    """Draw the weights of one head six times, with and without faults: panels A to F, in hundredths."""
    draw_in_hundredths({panel: weights_of(name) for panel, name in MAPS.items()}, "query", "key")


READ = matching_task(
    id="03.6",
    title="six maps of one head",
    points=3,
    minutes=10,
    level="medium",
    importance="core",
    truth=MAPS,
    confusions={
        frozenset({"scale left out", "as it should be"}): "both have rows that sum to 100. Where is the largest weight "
        "of a row almost everything?",
        frozenset({"softmax over the queries", "query and key exchanged"}): "add up a row, and add up a column",
        frozenset({"softmax over the queries", "as it should be"}): "add up a row, and add up a column",
        frozenset({"query and key exchanged", "as it should be"}): "one of the two has its largest weight in each row "
        "where the panel with the sharpest rows has it, too",
        frozenset({"query and key exchanged", "scale left out"}): "leaving out the scale makes every row sharper",
        frozenset({"causal", "queries of zero"}): "in one of them no row prefers anything; in the other, there are "
        "exact zeros",
    },
    see='chapter 03, "All queries at once" and "Why the scores are scaled"; the hints of this task',
    reward=lambda solution: print("  five of the six have rows that sum to 1: that test finds one fault of five"),
)

TASKS = [SOFTMAX, ATTENTION, HEADS, MODULE, BY_HAND, READ]
