"""Chapter 03: attention."""

import inspect

import torch

from ..modeling_siglip import SiglipAttention, SiglipVisionConfig
from .tasks import Case, Finding, Found, Mistake, Task, faults_left, larger, numbers, written_by_hand
from .watching import swap_task

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


def show_softmax(thing):
    for scores in ([1.0, 2.0, 3.0], [1001.0, 1002.0, 1003.0], [10.0, 20.0, 30.0]):
        weights = thing(torch.tensor([scores]), -1)[0].tolist()
        print(f"  scores {scores} -> weights {[round(weight, 3) for weight in weights]}")


SOFTMAX = Task(
    id="03.1",
    title="a softmax that does not overflow",
    points=2,
    minutes=8,
    level="easy",
    reference=softmax,
    cases=softmax_cases,
    see='chapter 03, "A softmax that does not overflow"; the hints of this task',
    extra=[written_by_hand(("_softmax", "_log_softmax"), "torch's softmax", torch.ones(2, 3), -1)],
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
    title="scaled dot-product attention",
    points=3,
    minutes=10,
    level="easy",
    reference=attention,
    cases=attention_cases,
    see='chapter 03, "All queries at once" and "Why the scores are scaled"; the hints of this task',
    symptoms=[rows_sum_to_one],
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


NUMBERS_STAY = (
    "`view` and `reshape` cut the numbers as they lie in memory and never move any: the axes are to be named in the "
    "order in which they lie, and exchanged in a second step"
)

HEADS = Task(
    id="03.3",
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
        Mistake("one head", "your numbers are those of a single head as wide as the model", OneHead),
        Mistake("weights not returned", "the output alone is returned; the docstring asks for two things", OutputAlone),
        Mistake("returned the other way round", "the weights are returned first", WeightsFirst),
        Mistake("heads averaged", "the weights are averaged over the heads: each head's own are asked for",
                WeightsAveraged),
        Mistake("causal", "later patches are hidden: nothing in a picture comes later", CausalVariant),
    ],
)  # fmt: skip

# --- 03.5 --------------------------------------------------------------------------------------------------------


class Listing(SiglipAttention):
    """The class that is printed in the exercise, with its three faults."""

    over_queries = True
    not_transposed = True
    key_for_value = True

    def forward(self, x):
        q, k, v = (split_heads(part(x), self.num_heads) for part in (self.q_proj, self.k_proj, self.v_proj))
        weights = (q @ k.transpose(-1, -2) * self.scale).softmax(-2 if self.over_queries else -1)
        output = weights @ (k if self.key_for_value else v)
        output = plain_view_merge(output) if self.not_transposed else merge_heads(output)
        return self.out_proj(output), weights


FAULTS = {  # what can be observed of each, and its name
    "over_queries": ("a query's weights do not sum to 1", "left: the softmax"),
    "not_transposed": ("numbers of one token still end up in another", "left: the merge"),
    "key_for_value": ("one of the three projections has no influence on the output", "left: a projection"),
}


BUGS = Task(
    id="03.5",
    title="find the three faults",
    points=3,
    minutes=10,
    level="hard",
    reference=SiglipAttention,
    cases=layer_cases,
    see="the hints of this task: what would you print to see each fault?",
    reward=lambda kind: print("  three faults, and every shape was right: shapes prove little"),
    mistakes=[
        *faults_left(FAULTS, lambda some: type("Left", (Listing,), {fault: fault in some for fault in FAULTS})),
        Mistake("scale forgotten", "the scale was right in the listing and is gone", NoScale),
        Mistake("no output projection", "the output projection was there in the listing and is gone", NoOutput),
    ],
)

TASKS = [
    SOFTMAX, ATTENTION, HEADS, MODULE, BUGS,
    swap_task("03.6", ("SiglipAttention",), see='chapter 03, "Break it"; the hints of this task'),
]  # fmt: skip
