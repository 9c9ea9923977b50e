"""Chapter 06: RMSNorm."""

import functools

import torch

from ..modeling_gemma import GemmaModel, GemmaRMSNorm
from .exposing import exposing_task
from .tasks import Case, Finding, Mistake, Prediction, Task, larger, numbers
from .watching import draw_kept, trained, words_kept

# --- 06.1 --------------------------------------------------------------------------------------------------------


def rms_norm(x, eps=1e-6):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def rms_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "L": 5, "D": 7 + k}
    yield Case((numbers(seed, 2, 5, 7 + k),), sizes=sizes)
    yield Case((numbers(seed, 2, 5, 7 + k, shift=3.0),), sizes=sizes, note="about 3 on average")
    yield Case((numbers(seed, 3, 8, scale=1e-3),), sizes={"L": 3, "D": 8}, note="about 1e-3 in size")
    yield Case((numbers(seed, 3, 8), 0.5), sizes={"L": 3, "D": 8}, note="eps = 0.5")
    yield Case((numbers(seed, 2, 3, 8, dtype=torch.bfloat16),), sizes={"B": 2, "L": 3, "D": 8})


def show_sizes(thing):
    """Tokens of very different sizes, before and after."""
    x = numbers(0, 1, 6, 64) * torch.tensor([0.01, 0.1, 1.0, 3.0, 10.0, 100.0])[None, :, None]
    y = thing(x)
    for label, value in (("before", x), ("after ", y)):
        sizes = value.square().mean(-1).sqrt()[0]
        print(f"  root mean square of six tokens {label}  " + "  ".join(f"{size:6.2f}" for size in sizes))


RMS = Task(
    id="06.1",
    importance="core",
    from_memory=True,
    title="divide by the root mean square",
    points=2,
    minutes=5,
    level="easy",
    reference=rms_norm,
    cases=rms_cases,
    see='chapter 06, "By hand"; the hints of this task',
    reward=show_sizes,
    mistakes=[
        Mistake(
            "mean over everything",
            "your numbers are those you get when one root mean square is taken of the whole tensor: then what a token "
            "becomes depends on its neighbours, and on the other rows of the batch",
            lambda x, eps=1e-6: x / (x.square().mean() + eps).sqrt(),
        ),
        Mistake(
            "wrong axis",
            "your numbers are those you get when the mean runs over the tokens instead of the features of one token",
            lambda x, eps=1e-6: x / (x.square().mean(-2, keepdim=True) + eps).sqrt(),
        ),
        Mistake(
            "wrong axis",
            "your mean runs over axis 1, counted from the front: the features are the last axis, however many there "
            "are",
            lambda x, eps=1e-6: x / (x.square().mean(1, keepdim=True) + eps).sqrt(),
        ),
        Mistake(
            "wrong axis",
            "your axis is 2, counted from the front: x may have fewer axes, and the features are the last one",
            lambda x, eps=1e-6: x / (x.square().mean(2, keepdim=True) + eps).sqrt(),
        ),
        Mistake(
            "float32 comes out",
            "the result is float32 whatever came in: it is to have the dtype of x",
            lambda x, eps=1e-6: rms_norm(x.float(), eps),
        ),
        Mistake(
            "eps squared",
            "eps is squared before it is added: that is next to nothing",
            lambda x, eps=1e-6: x / (x.square().mean(-1, keepdim=True) + eps**2).sqrt(),
        ),
        Mistake(
            "length instead of root mean square",
            "each token is divided by its length, as F.normalize does: the root of a mean is asked for, not of a sum",
            [
                lambda x, eps=1e-6: torch.nn.functional.normalize(x, dim=-1, eps=eps),
                lambda x, eps=1e-6: torch.nn.functional.normalize(x, dim=-1),
            ],
        ),
        Mistake(
            "wrong axis",
            "your numbers are those you get when the mean runs over the first axis",
            lambda x, eps=1e-6: x / (x.square().mean(0, keepdim=True) + eps).sqrt(),
        ),
        Mistake(
            "sum instead of mean",
            "your numbers are those you get from the root of the sum of squares: the length of the vector. It grows "
            "with the number of features, the root mean square doesn't",
            lambda x, eps=1e-6: x / (x.square().sum(-1, keepdim=True) + eps).sqrt(),
        ),
        Mistake(
            "root forgotten",
            "your numbers are those you get when dividing by the mean square: twice the input would give half the "
            "output, and not the same",
            lambda x, eps=1e-6: x / (x.square().mean(-1, keepdim=True) + eps),
        ),
        Mistake(
            "square of the mean",
            "your numbers are those you get when the mean is taken first and squared after: features of opposite sign "
            "cancel",
            lambda x, eps=1e-6: x / (x.mean(-1, keepdim=True).square() + eps).sqrt(),
        ),
        Mistake(
            "mean of sizes",
            "your numbers are those you get from the mean of the absolute values: a mean of squares weighs large "
            "features more",
            [
                lambda x, eps=1e-6: x / (x.abs().mean(-1, keepdim=True) + eps),
                lambda x, eps=1e-6: x / (x.abs().mean(-1, keepdim=True).square() + eps).sqrt(),
            ],
        ),
        Mistake(
            "mean subtracted",
            "your numbers are those of a layer norm: RMSNorm leaves the mean where it is, which is why it is cheaper",
            lambda x, eps=1e-6: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + eps).sqrt(),
        ),
        Mistake(
            "mean subtracted",
            "your numbers are those you get with the mean subtracted above and the squares left alone below",
            lambda x, eps=1e-6: (x - x.mean(-1, keepdim=True)) / (x.square().mean(-1, keepdim=True) + eps).sqrt(),
        ),
        Mistake(
            "variance instead of mean square",
            "your numbers are those you get when dividing by the standard deviation: it measures from the mean, the "
            "root mean square from zero",
            [
                lambda x, eps=1e-6: x / (x.var(-1, keepdim=True, correction=0) + eps).sqrt(),
                lambda x, eps=1e-6: x / (x.var(-1, keepdim=True) + eps).sqrt(),
                lambda x, eps=1e-6: x / (x.std(-1, keepdim=True) + eps),
                lambda x, eps=1e-6: x / x.std(-1, keepdim=True),
            ],
        ),
        Mistake(
            "eps outside the root",
            "your numbers are those you get when eps is added after the root. For inputs of size 1 nobody notices; "
            "for small ones it is another function",
            lambda x, eps=1e-6: x / (x.square().mean(-1, keepdim=True).sqrt() + eps),
        ),
        Mistake(
            "eps forgotten",
            "your numbers are those you get without eps: a token of zeros would become 0 / 0",
            lambda x, eps=1e-6: x / x.square().mean(-1, keepdim=True).sqrt(),
        ),
        Mistake(
            "eps not passed on",
            "the eps that is given is not used: a fixed one is",
            lambda x, eps=1e-6: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt(),
        ),
        Mistake(
            "multiplied",
            "your numbers are those you get when multiplying by the root mean square: large tokens become larger",
            lambda x, eps=1e-6: x * (x.square().mean(-1, keepdim=True) + eps).sqrt(),
        ),
        Mistake(
            "axis dropped",
            "the mean has one axis less than x, so it lines up with the wrong axis: there is an argument that keeps it",
            lambda x, eps=1e-6: x / (x.square().mean(-1) + eps).sqrt(),
        ),
    ],
)

# --- 06.2 --------------------------------------------------------------------------------------------------------


def normalise(x, kind, eps=1e-6):
    if kind == "rms":
        return rms_norm(x, eps)
    axes = {"batch": (0, 1), "layer": (2,)}[kind]
    mean = x.mean(axes, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(axes, keepdim=True) + eps).sqrt()


def kinds(batch=normalise, layer=normalise, rms=normalise):
    """`normalise` with some of its three kinds done differently."""
    parts = {"batch": batch, "layer": layer, "rms": rms}
    return lambda x, kind, eps=1e-6: parts[kind](x, kind, eps)


def standardise(axes, correction=0):
    def norm(x, kind=None, eps=1e-6):
        return (x - x.mean(axes, keepdim=True)) / (x.var(axes, keepdim=True, correction=correction) + eps).sqrt()

    return norm


def not_centred(axes):
    """The variance is that of the numbers minus their mean, and the mean is not subtracted above it."""
    return lambda x, kind=None, eps=1e-6: x / (x.var(axes, keepdim=True, correction=0) + eps).sqrt()


def squares_of_all(axes):
    """The mean is subtracted above, and below stands the mean square of x itself."""
    return lambda x, kind=None, eps=1e-6: (
        (x - x.mean(axes, keepdim=True)) / (x.square().mean(axes, keepdim=True) + eps).sqrt()
    )


def eps_left_out(norm):
    return lambda x, kind, eps=1e-6: norm(x, kind, 0.0)


def eps_after_the_root(axes, centred=True):
    def norm(x, kind=None, eps=1e-6):
        x = x - x.mean(axes, keepdim=True) if centred else x
        return x / (x.square().mean(axes, keepdim=True).sqrt() + eps)

    return norm


def kind_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "L": 5, "D": 7 + k}
    for kind in ("batch", "layer", "rms"):
        yield Case((numbers(seed, 2, 5, 7 + k, scale=2.0, shift=1.0), kind), sizes=sizes)
        yield Case((numbers(seed, 2, 5, 7 + k, scale=1e-3), kind), sizes=sizes, note="about 1e-3 in size")


def show_kinds(thing):
    x = numbers(3, 4, 6, 32, scale=2.0, shift=1.0)
    for kind in ("batch", "layer", "rms"):
        y = thing(x, kind)
        for what, part in (("one token:", y[0, 0]), ("one feature:", y[:, :, 0])):
            mean, size = round(part.mean().item(), 2) + 0.0, part.square().mean().sqrt()  # + 0.0: no "-0.00"
            print(f"  {kind:5}  {what:12} mean {mean:5.2f}, root mean square {size:.2f}")


KINDS = Task(
    id="06.2",
    importance="core",
    title="three norms, one line apart",
    points=3,
    minutes=10,
    level="easy",
    reference=normalise,
    cases=kind_cases,
    see='chapter 06, "Three norms on the same activations"; the hints of this task',
    reward=show_kinds,
    mistakes=[
        Mistake(
            "batch and layer swapped",
            "your batch norm is the layer norm and the other way round: ask for each what is alike afterwards, a "
            "token or a feature",
            kinds(batch=standardise((2,)), layer=standardise((0, 1))),
        ),
        Mistake(
            "batch norm over the rows only",
            "your batch norm takes its mean over the rows of the batch alone, for each place in the sequence: every "
            "token of every row is an example of a feature",
            kinds(batch=standardise((0,))),
        ),
        Mistake(
            "batch norm over the places only",
            "your batch norm takes its mean inside each row alone",
            kinds(batch=standardise((1,))),
        ),
        Mistake(
            "layer norm over the whole row",
            "your layer norm mixes the tokens of a row: each token is to be normalised by itself",
            kinds(layer=standardise((1, 2))),
        ),
        Mistake(
            "layer norm over the tokens",
            "your layer norm runs over the tokens and not over the features of a token",
            kinds(layer=standardise((1,))),
        ),
        Mistake(
            "one less in the variance",
            "your variance divides by the count minus one, as torch's var does unless it is told otherwise",
            kinds(batch=standardise((0, 1), 1), layer=standardise((2,), 1)),
        ),
        Mistake(
            "one less in the variance",
            "your variance divides by the count minus one, as torch's var does unless it is told otherwise",
            kinds(layer=standardise((2,), 1)),
        ),
        Mistake(
            "one less in the variance",
            "your variance divides by the count minus one, as torch's var does unless it is told otherwise",
            kinds(batch=standardise((0, 1), 1)),
        ),
        Mistake(
            "mean subtracted in rms",
            "your RMSNorm subtracts the mean: then it is the layer norm again",
            kinds(rms=standardise((2,))),
        ),
        Mistake(
            "mean not subtracted",
            "your layer norm divides and does not subtract the mean: then it is RMSNorm again",
            kinds(layer=lambda x, kind, eps=1e-6: rms_norm(x, eps)),
        ),
        *(
            Mistake(f"{kind}: eps outside the root", f"in your {kind} norm eps is added after the root: for inputs of "
                    "size 1e-3 it is another function", kinds(**{kind: eps_after_the_root(axes, kind != "rms")}))
            for kind, axes in (("batch", (0, 1)), ("layer", 2), ("rms", 2))
        ),
        *(
            Mistake(f"{kind}: eps forgotten", f"your {kind} norm leaves eps out",
                    kinds(**{kind: eps_left_out(normalise)})) for kind in ("batch", "layer", "rms")
        ),
        *(
            Mistake(f"{kind}: mean not subtracted", f"your {kind} norm divides by the right number and does not "
                    "subtract the mean", kinds(**{kind: not_centred(axes)}))
            for kind, axes in (("batch", (0, 1)), ("layer", 2))
        ),
        *(
            Mistake(f"{kind}: squares from before", f"your {kind} norm subtracts the mean, and divides by the mean "
                    "square of the numbers before that", kinds(**{kind: squares_of_all(axes)}))
            for kind, axes in (("batch", (0, 1)), ("layer", 2))
        ),
        Mistake("rms: variance in the root", "your RMSNorm divides by the standard deviation: that measures from the "
                "mean, the root mean square from zero",
                [kinds(rms=not_centred(2)),
                 kinds(rms=lambda x, kind, eps=1e-6: x / (x.var(2, keepdim=True) + eps).sqrt())]),
        Mistake("rms over the tokens", "the mean square of your RMSNorm runs over the tokens: it is that of one "
                "token's features",
                [kinds(rms=lambda x, kind, eps=1e-6, axes=axes: x / (x.square().mean(axes, keepdim=True) + eps).sqrt())
                 for axes in ((0, 1), 0, 1)]),
        Mistake("batch norm over everything", "your batch norm takes one mean over all features: each feature has a "
                "mean of its own", kinds(batch=standardise((0, 1, 2)))),
        Mistake(
            "everything at once",
            "one mean is taken over all three axes, whatever the kind",
            kinds(batch=standardise((0, 1, 2)), layer=standardise((0, 1, 2))),
        ),
        Mistake(
            "eps outside the root",
            "eps is added after the root: for inputs of size 1e-3 it is another function",
            lambda x, kind, eps=1e-6: (x - {"batch": x.mean((0, 1), keepdim=True), "layer": x.mean(2, keepdim=True),
                                            "rms": 0}[kind]) / (
                {"batch": x.std((0, 1), keepdim=True, correction=0), "layer": x.std(2, keepdim=True, correction=0),
                 "rms": x.square().mean(2, keepdim=True).sqrt()}[kind] + eps),
        ),
    ],
)  # fmt: skip

# --- 06.3 --------------------------------------------------------------------------------------------------------


class WithoutOne(GemmaRMSNorm):
    def forward(self, x):
        return (rms_norm(x.float(), self.eps) * self.weight.float()).type_as(x)


class NoWeight(GemmaRMSNorm):
    def forward(self, x):
        return rms_norm(x.float(), self.eps).type_as(x)


class MeanSubtracted(GemmaRMSNorm):
    def forward(self, x):
        wide = x.float() - x.float().mean(-1, keepdim=True)
        return (rms_norm(wide, self.eps) * (1 + self.weight.float())).type_as(x)


class EpsOutside(GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        normed = wide / (wide.square().mean(-1, keepdim=True).sqrt() + self.eps)
        return (normed * (1 + self.weight.float())).type_as(x)


class EpsFixed(GemmaRMSNorm):
    def forward(self, x):
        return (rms_norm(x.float(), 1e-6) * (1 + self.weight.float())).type_as(x)


class WrongAxis(GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        normed = wide / (wide.square().mean(-2, keepdim=True) + self.eps).sqrt()
        return (normed * (1 + self.weight.float())).type_as(x)


class OverEverything(GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        return (wide / (wide.square().mean() + self.eps).sqrt() * (1 + self.weight.float())).type_as(x)


class HalfPrecision(GemmaRMSNorm):
    def forward(self, x):
        return (rms_norm(x, self.eps) * (1 + self.weight)).type_as(x)


class WeightAdded(GemmaRMSNorm):
    def forward(self, x):
        return (rms_norm(x.float(), self.eps) + self.weight.float()).type_as(x)


class OnePlusOutside(GemmaRMSNorm):
    def forward(self, x):
        return (1 + rms_norm(x.float(), self.eps) * self.weight.float()).type_as(x)


class LlamaOrder(GemmaRMSNorm):
    def forward(self, x):
        return (rms_norm(x.float(), self.eps).type_as(x) * (1 + self.weight)).type_as(x)


class LlamaOrderCast(GemmaRMSNorm):
    def forward(self, x):
        return rms_norm(x.float(), self.eps).type_as(x) * (1 + self.weight).type_as(x)


class LlamaOrderPromoted(GemmaRMSNorm):
    def forward(self, x):
        return rms_norm(x.float(), self.eps).type_as(x) * (1 + self.weight)


class WeightBeforeTheNorm(GemmaRMSNorm):
    def forward(self, x):
        return rms_norm(x.float() * (1 + self.weight.float()), self.eps).type_as(x)


class SecondAxis(GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        normed = wide / (wide.square().mean(1, keepdim=True) + self.eps).sqrt()
        return (normed * (1 + self.weight.float())).type_as(x)


class HalfAndWeight(GemmaRMSNorm):
    def forward(self, x):
        wide = x.half()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight.float())).type_as(
            x
        )


class CastAndBack(GemmaRMSNorm):
    def forward(self, x):
        return super().forward(x).float()


class AlwaysHalf(GemmaRMSNorm):
    def forward(self, x):
        return (rms_norm(x.half(), self.eps) * (1 + self.weight.float())).type_as(x)


class NotCastBack(GemmaRMSNorm):
    def forward(self, x):
        return rms_norm(x.float(), self.eps) * (1 + self.weight.float())


class RootForgotten(GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        normed = wide / (wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * (1 + self.weight.float())).type_as(x)


class SumOfSquares(GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        normed = wide / (wide.square().sum(-1, keepdim=True) + self.eps).sqrt()
        return (normed * (1 + self.weight.float())).type_as(x)


def norm_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "L": 5, "D": 7 + k}
    yield Case((numbers(seed, 2, 5, 7 + k),), (7 + k,), sizes)
    yield Case((numbers(seed, 2, 5, 7 + k, shift=2.0),), (7 + k,), sizes, note="about 2 on average")
    yield Case((numbers(seed, 3, 8, scale=1e-3),), (8, 1e-6), {"L": 3, "D": 8}, note="about 1e-3 in size")
    yield Case((numbers(seed, 3, 8),), (8, 0.1), {"L": 3, "D": 8}, note="eps = 0.1")
    yield Case((numbers(seed, 2, 3, 8, dtype=torch.bfloat16),), (8,), {"B": 2, "L": 3, "D": 8})
    yield Case(
        (numbers(seed, 2, 3, 8, scale=500, dtype=torch.float16),), (8,), {"B": 2, "L": 3, "D": 8},
        note="numbers of about 500, whose squares float16 cannot hold",
    )  # fmt: skip


def starts_as_a_plain_norm(kind) -> Finding | None:
    weight = kind(6).weight
    if weight.eq(1).all():
        return Finding(
            "starts at one",
            "a new module's weight is all ones, so it scales by 2",
            "published Gemma weights are what is added to something; a new norm should scale by 1",
        )
    if not weight.eq(0).all():
        return Finding("start", f"a new module's weight starts as {weight.tolist()[:3]}...", "a new norm scales by 1")
    return None


def bits(kind, x, weight):
    module = kind(x.shape[-1])
    with torch.no_grad():
        module.weight.copy_(weight)
        return module(x)


def multiplies_before_the_cast(kind) -> Finding | None:
    """Two roundings to bfloat16 instead of one show in the last bit of every fourth number."""
    x, weight = numbers(5, 64, 256, dtype=torch.bfloat16), numbers(6, 256, scale=0.5)
    with torch.no_grad():
        got, want = bits(kind, x, weight), bits(GemmaRMSNorm, x, weight)
        share = float((got != want).float().mean())
        if share < 0.03:
            return None
        saw = f"in bfloat16, {share:.0%} of {got.numel()} numbers differ from the expected ones in the last bit"
        for kind_of_error, name, means in (
            (LlamaOrder, "cast before the weight",
             "the result is rounded to bfloat16 twice: once before the weight is applied and once after. Llama does "
             "it so; Gemma's weights were trained with one rounding, at the very end"),
            (LlamaOrderCast, "cast before the weight",
             "the normalised token and the weight are both rounded to bfloat16, and then their product: Gemma's "
             "weights were trained with one rounding, at the very end"),
            (HalfPrecision, "computed in half precision",
             "squares and mean are rounded to 8 bits on the way: what does the docstring say about the dtype inside?"),
        ):  # fmt: skip
            if torch.equal(bits(kind_of_error, x, weight), got):
                return Finding(name, saw, means)
    return Finding("rounded too early", saw, "something is rounded to the input's dtype before the end")


def adds_the_one_in_float32(kind) -> Finding | None:
    """A norm whose weights are bfloat16, as those of a model that was converted: 1 + weight needs more bits."""
    x, weight = numbers(5, 16, 64), numbers(6, 64, scale=0.05).bfloat16()
    module = kind(64).to(torch.bfloat16)
    with torch.no_grad():
        module.weight.copy_(weight)
        got, want = module(x), bits(GemmaRMSNorm, x, weight.float())
    if got.dtype != x.dtype:
        saw = f"with weights in bfloat16 and x in float32, the result is {str(got.dtype).removeprefix('torch.')}"
        return Finding("dtype of the weight", saw, "the result has the dtype of x, whatever the weights have")
    gap = float(((got - want).abs() / (1 + want.abs())).max())
    if gap < 1e-5:
        return None
    return Finding(
        "1 added too early",
        f"with weights in bfloat16 and x in float32, the result is wrong by up to {gap:.1g} of its size",
        "1 + weight is worked out in bfloat16, where 1.03 lies between two numbers: the weight is to be float32 before "
        "the 1 is added",
    )


def show_norm(kind):
    module = kind(4)
    x = torch.tensor([[3.0, -1.0, 2.0, 1.0], [300.0, -100.0, 200.0, 100.0]])
    for row, normed in zip(x.tolist(), module(x).tolist()):
        print(f"  {row} -> {[round(value, 2) for value in normed]}")


NORM = Task(
    id="06.3",
    importance="core",
    from_memory=True,
    title="GemmaRMSNorm",
    points=4,
    minutes=15,
    level="medium",
    reference=GemmaRMSNorm,
    cases=norm_cases,
    see='chapter 06, "The class" and "Why float32"; the hints of this task',
    reward=show_norm,
    extra=[starts_as_a_plain_norm, multiplies_before_the_cast, adds_the_one_in_float32],
    mistakes=[
        Mistake(
            "weight instead of 1 + weight",
            "your numbers are those you get when multiplying by the weight itself. Gemma stores how far the scale is "
            "from 1: with the trained weights, most of each token would vanish",
            WithoutOne,
        ),
        Mistake("weight unused", "your numbers are those you get without the weight", NoWeight),
        Mistake("weight added", "the weight is added to the result and not to the scale", WeightAdded),
        Mistake(
            "bracket missing", "1 is added to the result and not to the weight: multiplication binds more tightly",
            OnePlusOutside,
        ),
        Mistake("mean subtracted", "your numbers are those of a layer norm, which subtracts the mean first",
                     MeanSubtracted),
        Mistake(
            "eps outside the root", "eps is added after the root: at size 1 nobody notices, at 1e-3 it is another "
            "function", EpsOutside,
        ),
        Mistake("eps not passed on", "the eps given to the constructor is not used: a fixed one is", EpsFixed),
        Mistake("wrong axis", "the mean runs over the tokens instead of the features of one token", WrongAxis),
        Mistake("mean over everything", "one mean square is taken of the whole tensor", OverEverything),
        Mistake("root forgotten", "your numbers are those you get when dividing by the mean square", RootForgotten),
        Mistake("sum instead of mean", "your numbers are those you get from the sum of squares", SumOfSquares),
        Mistake(
            "computed in half precision",
            "in float16 the square of 500 is more than 65504, the largest number there is, and becomes infinite",
            HalfPrecision,
        ),
        Mistake("cast before the weight", "the result is rounded to the dtype of x before the weight is applied, and "
                "the float32 weight makes float32 of it again: one cast, at the very end", LlamaOrderPromoted),
        Mistake("weight before the norm", "the weights are applied before the norm, which then divides by the size "
                "that they make: they come after it", WeightBeforeTheNorm),
        Mistake("wrong axis", "the mean runs over axis 1, counted from the front: the features are the last axis",
                SecondAxis),
        Mistake("not cast back", "the result is cast to the dtype that came in and to float32 after that", CastAndBack),
        Mistake("computed in half precision", "everything is computed in float16, whatever comes in: float32 is asked "
                "for", [AlwaysHalf, HalfAndWeight]),
        Mistake("not cast back", "the numbers are right and remain float32: the next layer expects the dtype "
                     "that came in", NotCastBack),
    ],
)  # fmt: skip

# --- 06.4 --------------------------------------------------------------------------------------------------------


def gemma_norm(x, weight, eps=1e-6):
    """x [N, D], weight [D] -> [N, D], in the dtype of x."""
    wide = x.float()
    normed = wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * (1 + weight.float())).type_as(x)


def half_inside(x, weight, eps=1e-6):
    normed = x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    return (normed * (1 + weight)).type_as(x)


def mean_subtracted(x, weight, eps=1e-6):
    wide = x.float() - x.float().mean(-1, keepdim=True)
    normed = wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * (1 + weight.float())).type_as(x)


def eps_outside(x, weight, eps=1e-6):
    wide = x.float()
    normed = wide / (torch.sqrt(wide.square().mean(-1, keepdim=True)) + eps)
    return (normed * (1 + weight.float())).type_as(x)


def over_all(x, weight, eps=1e-6):
    wide = x.float()
    normed = wide / torch.sqrt(wide.square().mean() + eps)
    return (normed * (1 + weight.float())).type_as(x)


def weight_first(x, weight, eps=1e-6):
    wide = x.float() * (1 + weight.float())
    return (wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps)).type_as(x)


WRONG_VERSIONS = {
    version.__name__: version for version in (half_inside, mean_subtracted, eps_outside, over_all, weight_first)
}


def exposing_norms():
    unit, none = torch.tensor([[1.0, -1.0]]), torch.zeros(2)
    return {
        "half_inside": (300 * unit.half(), none),
        "mean_subtracted": (unit + 2, none),
        "eps_outside": (1e-3 * unit, none),
        "over_all": (torch.tensor([[1.0, -1.0], [5.0, -5.0]]), none),
        "weight_first": (unit, torch.tensor([0.0, 3.0])),
    }


def not_for_a_norm(x, weight) -> str | None:
    """Why this is no input for `gemma_norm`, or None."""
    for name, value, axes in (("x", x, 2), ("weight", weight, 1)):
        if not isinstance(value, torch.Tensor) or value.ndim != axes or not value.is_floating_point():
            seen = f"{list(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
            return f"{name} is {seen}, expected a float tensor with {axes} {'axes' if axes > 1 else 'axis'}"
        if not value.isfinite().all():
            return f"{name} holds numbers that are not finite"
    if 0 in x.shape or len(weight) != x.shape[1]:
        return f"x {list(x.shape)} and weight {list(weight.shape)} do not fit together as [N, D] and [D]"
    return None


def show_random(solution):
    """What an ordinary test exposes: random numbers of ordinary size."""
    x, weight = numbers(0, 4, 8, shift=0.5), numbers(1, 8, scale=0.5)
    want = gemma_norm(x, weight)
    differ = {
        name: not torch.allclose(version(x, weight), want, 1e-3, 1e-3) for name, version in WRONG_VERSIONS.items()
    }
    seen, missed = ([name for name, wrong in differ.items() if wrong is kind] for kind in (True, False))
    print(f"  A test with one random input, [4, 8] in float32, exposes {', '.join(seen)} all at once,")
    print(f"  and does not expose {' and '.join(missed)}. Your five inputs tell all five apart.")


EXPOSE = exposing_task(
    id="06.4",
    title="five inputs that expose",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    right=gemma_norm,
    wrong=WRONG_VERSIONS,
    reference=exposing_norms,
    usable=not_for_a_norm,
    tolerance=1e-3,
    see='chapter 06, "Why float32" and "Where $\\epsilon$ goes"; the hints of this task',
    reward=show_random,
)

# --- 06.5 --------------------------------------------------------------------------------------------------------


class Centred(GemmaRMSNorm):
    """Gemma's norm, but for the mean: it is subtracted first, as in layer norm."""

    def forward(self, x):
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).type_as(x)


class CentredAfter(GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        normed = (wide - wide.mean(-1, keepdim=True)) * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).type_as(x)


class CentredAtLast(GemmaRMSNorm):
    def forward(self, x):
        normed = super().forward(x).float()
        return (normed - normed.mean(-1, keepdim=True)).type_as(x)


class CentredOverTokens(GemmaRMSNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-2, keepdim=True))


class CentredByOneMean(GemmaRMSNorm):
    def forward(self, x):
        return super().forward(x.float() - x.float().mean()).type_as(x)


class CentredOverAxisOne(GemmaRMSNorm):
    def forward(self, x):
        return super().forward(x.float() - x.float().mean(1, keepdim=True)).type_as(x)


class CentredTooNarrow(GemmaRMSNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class CentredEpsFixed(GemmaRMSNorm):
    def forward(self, x):
        wide = x.float() - x.float().mean(-1, keepdim=True)
        return (rms_norm(wide, 1e-5) * (1.0 + self.weight.float())).type_as(x)


class CentredCastEarly(GemmaRMSNorm):
    def forward(self, x):
        wide = x.float() - x.float().mean(-1, keepdim=True)
        return rms_norm(wide, self.eps).type_as(x) * (1.0 + self.weight)


class CentredByOneLess(GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True)
        normed = wide * torch.rsqrt(wide.var(-1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).type_as(x)


class CentredWithoutOne(GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normed * self.weight.float()).type_as(x)


class Lifted(GemmaModel):
    """The decoder, with 1 added to every number that enters it. [B, L, D] -> [B, L, D]"""

    def forward(self, inputs_embeds, *arguments, **named):
        return super().forward(inputs_embeds + 1, *arguments, **named)


@functools.cache
def lifted_with_gemmas() -> dict[str, float]:
    return words_kept(GemmaModel=Lifted)


def centred_cases(seed):
    k = larger(seed)
    yield Case((numbers(seed, 2, 5, 7 + k, shift=0.5),), (7 + k,), {"B": 2, "N": 5, "D": 7 + k}, note="mean about 0.5")
    yield Case((numbers(seed, 3, 6, scale=1e-3),), (6,), {"N": 3, "D": 6}, note="about 1e-3 in size")
    yield Case(
        (numbers(seed, 4, 8, scale=300.0, dtype=torch.float16),), (8,), {"N": 4, "D": 8}, note="float16, 300 in size"
    )
    narrow = numbers(seed, 4, 8, shift=100.3, dtype=torch.bfloat16)
    yield Case((narrow,), (8,), {"N": 4, "D": 8}, note="bfloat16, mean about 100")
    yield Case((numbers(seed, 3, 6),), (6, 0.1), {"N": 3, "D": 6}, note="eps = 0.1")


def show_centred(kind):
    """What the learner's norm leaves of the captions, and what it and Gemma's leave when 1 is added to all inputs."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so nothing can be measured.")
        return
    rows = {
        "yours": words_kept(GemmaRMSNorm=kind),
        "1 added, Gemma's": lifted_with_gemmas(),
        "1 added, yours": words_kept(GemmaModel=Lifted, GemmaRMSNorm=kind),
    }
    print("Captions of 24 that are as before, and words that are kept, with your norm in all nine places, with 1 added")
    print("to every number that enters the decoder, and with both:")
    draw_kept(rows)


CENTRED = Task(
    id="06.5",
    title="a norm that subtracts the mean",
    points=2,
    minutes=8,
    level="easy",
    importance="core",
    reference=Centred,
    cases=centred_cases,
    see='chapter 06, "Three norms on the same activations" and "Break it"; the hints of this task',
    reward=show_centred,
    prediction=Prediction(
        "1 is added to every number that enters the trained decoder: of 24 captions, how many stay as they were with "
        "Gemma's norms, and how many with yours in all nine places?",
        truth=lambda: {
            "Gemma's norms": lifted_with_gemmas()["captions"],
            "your norms": words_kept(GemmaModel=Lifted, GemmaRMSNorm=Centred)["captions"],
        },
        tempting={"Gemma's norms": 0, "your norms": 0},
        why="Nothing in the decoder reads the residual stream but through a norm, and yours subtracts what all "
        "features of a token have in common: the 1 is carried along and never seen. Gemma's norm lets it through. "
        "Without the added 1 both norms give the same captions: in this model the square of a token's mean is 0.6% of "
        "its mean square, no more than 128 random features would have (1/128 is 0.8%). That is what RMSNorm counts on "
        "when it leaves the step out.",
    ),
    mistakes=[
        Mistake("no mean subtracted", "your norm computes what Gemma's does: no mean is subtracted", GemmaRMSNorm),
        Mistake("size from before", "the mean is subtracted, and the root mean square is that of the numbers before",
                CentredAfter),
        Mistake("subtracted at the end", "the mean is subtracted from the result, after the scale", CentredAtLast),
        Mistake("mean over the tokens", "your mean runs over the tokens: each token is to be treated by itself",
                CentredOverTokens),
        Mistake("mean over the tokens", "your mean runs over axis 1, counted from the front: the features are the last "
                "axis", CentredOverAxisOne),
        Mistake("one mean", "one mean of all tokens is subtracted: each token has its own", CentredByOneMean),
        Mistake("subtracted too early", "the mean is worked out and subtracted in the dtype of x, which cannot hold it "
                "exactly: float32 first", CentredTooNarrow),
        Mistake("eps fixed", "your eps is fixed: the module has its own, self.eps",
                [CentredEpsFixed, type("Small", (CentredEpsFixed,), {"forward": lambda self, x: (rms_norm(
                    x.float() - x.float().mean(-1, keepdim=True), 1e-6) * (1.0 + self.weight.float())).type_as(x)})]),
        Mistake("cast before the weight", "the result is rounded to the dtype of x before the weight is applied: one "
                "cast, at the very end", CentredCastEarly),
        Mistake("by one less", "`var` divides by D - 1 unless you say `correction=0`", CentredByOneLess),
        Mistake("weight instead of 1 + weight", "the scale was 1 + weight in Gemma's norm, and is to stay that",
                CentredWithoutOne),
    ],
)  # fmt: skip

TASKS = [RMS, KINDS, NORM, EXPOSE, CENTRED]
