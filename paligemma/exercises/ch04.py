"""Chapter 04: the image encoder, and how it was trained."""

import functools

import torch
from torch.nn import functional as F

from ..modeling_siglip import SiglipEncoderLayer, SiglipVisionConfig
from ..world.contrastive import load_tiny_siglip, text_ids
from ..world.scenes import COLOURS, caption, draw
from .exposing import exposing_task, matching_task
from .tasks import Case, Finding, Mistake, Prediction, Task, larger, numbers, written_by_hand
from .watching import KINDS, PROMPT, draw_in_hundredths, scenes, show_words_kept, taken, trained, words_kept

# --- 04.1 --------------------------------------------------------------------------------------------------------


def layer_norm(x, weight, bias, eps=1e-6, axes=-1, correction=0):
    mean = x.mean(axes, keepdim=True)
    return (x - mean) / (x.var(axes, keepdim=True, correction=correction) + eps).sqrt() * weight + bias


def layer_norm_by(size, x, weight, bias):
    """x minus its mean, divided by `size` of that."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / size(centred) * weight + bias


def norm_cases(seed):
    k = larger(seed)
    weight, bias = numbers(seed + 20, 7 + k), numbers(seed + 30, 7 + k)
    sizes = {"B": 2, "N": 5, "D": 7 + k}
    yield Case((numbers(seed, 2, 5, 7 + k), weight, bias), sizes=sizes)
    yield Case((numbers(seed, 2, 5, 7 + k, scale=2.0, shift=3.0), weight, bias), sizes=sizes, note="about 3 on average")
    yield Case((numbers(seed, 2, 5, 7 + k, scale=1e-3), weight, bias), sizes=sizes, note="about 1e-3 in size")
    yield Case((numbers(seed, 2, 5, 7 + k), weight, bias, 0.5), sizes=sizes, note="eps = 0.5")


def show_norm(thing):
    x = torch.tensor([[1.0, 2.0, 3.0, 6.0], [100.0, 200.0, 300.0, 600.0], [101.0, 102.0, 103.0, 106.0]])
    for row, normed in zip(x.tolist(), thing(x[None], torch.ones(4), torch.zeros(4))[0].tolist()):  # x is [B, N, D]
        print(f"  {row} -> {[round(value, 2) for value in normed]}")


def varied(function):
    return lambda x, weight, bias, eps=1e-6: function(x, weight, bias, eps)


NORM = Task(
    id="04.1",
    importance="core",
    title="layer norm",
    points=2,
    minutes=8,
    level="easy",
    reference=layer_norm,
    cases=norm_cases,
    tolerance=2e-5,
    see='chapter 04, "A layer norm"; the hints of this task',
    extra=[written_by_hand(("native_layer_norm",), "torch's layer norm", torch.ones(1, 2, 3), *torch.ones(2, 3))],
    reward=show_norm,
    mistakes=[
        Mistake("one less in the variance", "your variance divides by the count minus one, as torch's var and std do "
                "unless they are told otherwise", varied(lambda x, w, b, e: layer_norm(x, w, b, e, correction=1))),
        Mistake("mean not subtracted", "your numbers are those you get when dividing and not subtracting the mean",
                varied(lambda x, w, b, e: x / (x.var(-1, keepdim=True, correction=0) + e).sqrt() * w + b)),
        Mistake("mean not subtracted", "your numbers are those of RMSNorm, which does not subtract the mean",
                varied(lambda x, w, b, e: x / (x.square().mean(-1, keepdim=True) + e).sqrt() * w + b)),
        Mistake("root forgotten", "your numbers are those you get when dividing by the variance",
                varied(lambda x, w, b, e: (x - x.mean(-1, keepdim=True)) / (
                    x.var(-1, keepdim=True, correction=0) + e) * w + b)),
        Mistake("eps outside the root", "eps is added after the root: at size 1 nobody notices, at 1e-3 it is another "
                "function", varied(lambda x, w, b, e: (x - x.mean(-1, keepdim=True)) / (
                    x.std(-1, keepdim=True, correction=0) + e) * w + b)),
        Mistake("eps forgotten", "your numbers are those you get without eps: a token of equal numbers would be 0 / 0",
                varied(lambda x, w, b, e: layer_norm(x, w, b, 0.0))),
        Mistake("eps not passed on", "the eps that is given is not used: a fixed one is",
                varied(lambda x, w, b, e: layer_norm(x, w, b, 1e-6))),
        Mistake("eps not passed on", "the eps that is given is not used: torch's usual 1e-5 is",
                varied(lambda x, w, b, e: layer_norm(x, w, b, 1e-5))),
        Mistake("wrong axis", "mean and variance run over the tokens: each token is to be normalised by itself",
                varied(lambda x, w, b, e: layer_norm(x, w, b, e, axes=-2))),
        Mistake("wrong axis", "mean and variance run over the batch",
                varied(lambda x, w, b, e: layer_norm(x, w, b, e, axes=0))),
        Mistake("over the whole picture", "mean and variance run over tokens and features together",
                varied(lambda x, w, b, e: layer_norm(x, w, b, e, axes=(-2, -1)))),
        Mistake("wrong axis", "mean and variance run over the batch and the tokens, for each feature: that is batch "
                              "norm",
                varied(lambda x, w, b, e: layer_norm(x, w, b, e, axes=(0, 1)))),
        Mistake("squares from before", "the mean is subtracted above, and below stands the mean square of the numbers "
                "before that: the variance is measured from the mean",
                varied(lambda x, w, b, e: (x - x.mean(-1, keepdim=True)) / (
                    x.square().mean(-1, keepdim=True) + e).sqrt() * w + b)),
        Mistake("differences not squared", "the variance is the mean of the squared differences: yours is the mean of "
                "their sizes", [
                    varied(lambda x, w, b, e: layer_norm_by(lambda c: (c.abs().mean(-1, keepdim=True) + e).sqrt(),
                                                            x, w, b)),
                    varied(lambda x, w, b, e: layer_norm_by(lambda c: c.abs().mean(-1, keepdim=True) + e, x, w, b))]),
        Mistake("subtracted too late", "the mean is subtracted after the division: it has the size of x, and what it "
                "is subtracted from has not", varied(lambda x, w, b, e: (x / (
                    x.var(-1, keepdim=True, correction=0) + e).sqrt() - x.mean(-1, keepdim=True)) * w + b)),
        Mistake("one less, and eps outside", "two at once: torch's std divides by the count minus one unless it is "
                "told otherwise, and eps belongs under the root",
                varied(lambda x, w, b, e: layer_norm_by(lambda c: c.std(-1, keepdim=True) + e, x, w, b))),
        Mistake("weight and bias unused", "your numbers are those you get without weight and bias",
                varied(lambda x, w, b, e: layer_norm(x, 1.0, 0.0, e))),
        Mistake("bias unused", "your numbers are those you get without the bias",
                varied(lambda x, w, b, e: layer_norm(x, w, 0.0, e))),
        Mistake("weight unused", "your numbers are those you get without the weight",
                varied(lambda x, w, b, e: layer_norm(x, 1.0, b, e))),
        Mistake("1 + weight", "your scale is 1 + weight: that is Gemma's RMSNorm; here the weight is the scale",
                varied(lambda x, w, b, e: layer_norm(x, 1 + w, b, e))),
        Mistake("bias before weight", "the bias is added first and scaled, too",
                varied(lambda x, w, b, e: (layer_norm(x, 1.0, 0.0, e) + b) * w)),
    ],
)  # fmt: skip

# --- 04.2 --------------------------------------------------------------------------------------------------------


def config(width=6, wide=10, layers=1, side=2, **more):
    return SiglipVisionConfig(hidden_size=width, intermediate_size=wide, num_hidden_layers=layers,
                              num_attention_heads=2, image_size=side * 4, patch_size=4, **more)  # fmt: skip


def norm_then_mlp(x, weight, bias, w1, w2):
    """x [N, D]; weight, bias [D]; w1 [D, M]; w2 [M, D] -> x + MLP(norm(x)), [N, D]: half a layer, in five lines."""
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
    normed = normed * weight + bias
    hidden = F.gelu(normed @ w1, approximate="tanh")
    return x + hidden @ w2


def bias_first(x, weight, bias, w1, w2):
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
    return x + F.gelu(((normed + bias) * weight) @ w1, approximate="tanh") @ w2


def large_eps(x, weight, bias, w1, w2):
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-2)
    return x + F.gelu((normed * weight + bias) @ w1, approximate="tanh") @ w2


def relu(x, weight, bias, w1, w2):
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
    return x + F.relu((normed * weight + bias) @ w1) @ w2


def residual_from_norm(x, weight, bias, w1, w2):
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
    normed = normed * weight + bias
    return normed + F.gelu(normed @ w1, approximate="tanh") @ w2


def mean_of_all(x, weight, bias, w1, w2):
    centred = x - x.mean()
    normed = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
    return x + F.gelu((normed * weight + bias) @ w1, approximate="tanh") @ w2


WRONG_VERSIONS = {
    version.__name__: version for version in (bias_first, large_eps, relu, residual_from_norm, mean_of_all)
}


def exposing_halves():
    # x equals its own norm where `weight` is its deviation, so that nobody sees where the residual comes from. Far from
    # 0, GELU is ReLU. And a token of size 100 does not feel eps.
    unit, ones, none, eye = torch.tensor([[1.0, -1.0]]), torch.ones(2), torch.zeros(2), torch.eye(2)
    lopsided = torch.tensor([[300.0, -100.0], [-300.0, 100.0]])  # each its own norm, and of different means
    return {
        "bias_first": (torch.ones(1, 2), none, ones, 20 * eye, eye),
        "large_eps": (0.1 * unit, 0.1 * ones, none, 200 * eye, eye),
        "relu": (100 * unit, 100 * ones, none, 0.01 * eye, eye),
        "residual_from_norm": (unit + 3, ones, none, 0 * eye, eye),
        "mean_of_all": (lopsided, torch.tensor([300.0, 100.0]), none, eye, eye),
    }


def not_a_half_layer(x, weight, bias, w1, w2) -> str | None:
    """Why this is no input for `norm_then_mlp`, or None."""
    named = {"x": (x, 2), "weight": (weight, 1), "bias": (bias, 1), "w1": (w1, 2), "w2": (w2, 2)}
    for name, (value, axes) in named.items():
        if not isinstance(value, torch.Tensor) or value.ndim != axes or value.dtype != torch.float32:
            seen = f"{list(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
            return f"{name} is {seen}, expected a float32 tensor with {axes} {'axes' if axes > 1 else 'axis'}"
        if not value.isfinite().all():
            return f"{name} holds numbers that are not finite"
    D, M = w1.shape
    if x.shape[1] != D or D < 2 or len(weight) != D or len(bias) != D or list(w2.shape) != [M, D] or 0 in x.shape:
        seen = ", ".join(f"{name} {list(value.shape)}" for name, (value, _) in named.items())
        return f"{seen} do not fit together as [N, D], [D], [D], [D, M], [M, D] with D of 2 or more"
    return None


EXPOSE = exposing_task(
    id="04.2",
    title="half a layer, and five that are not",
    points=3,
    minutes=15,
    level="medium",
    importance="deepen",
    right=norm_then_mlp,
    wrong=WRONG_VERSIONS,
    reference=exposing_halves,
    usable=not_a_half_layer,
    tolerance=1e-3,
    see='chapter 04, "A layer norm" and "The MLP"; the hints of this task',
    reward=lambda solution: print(
        "  an input is its own norm where the weight is its deviation: there nobody sees a wrong residual"
    ),
)

# --- 04.3 --------------------------------------------------------------------------------------------------------


class Layer(SiglipEncoderLayer):
    """The package's layer, to be done differently."""

    def attend(self, x):
        return self.self_attn(x)[0]


class ResidualFromNormed(Layer):
    def forward(self, x):
        x = self.layer_norm1(x)
        x = x + self.attend(x)
        x = self.layer_norm2(x)
        return x + self.mlp(x)


class FirstResidualFromNormed(Layer):
    def forward(self, x):
        normed = self.layer_norm1(x)
        x = normed + self.attend(normed)
        return x + self.mlp(self.layer_norm2(x))


class SecondResidualFromNormed(Layer):
    def forward(self, x):
        x = x + self.attend(self.layer_norm1(x))
        normed = self.layer_norm2(x)
        return normed + self.mlp(normed)


class PostNorm(Layer):
    def forward(self, x):
        x = self.layer_norm1(x + self.attend(x))
        return self.layer_norm2(x + self.mlp(x))


class OutputNorm(Layer):
    def forward(self, x):
        x = x + self.layer_norm1(self.attend(x))
        return x + self.layer_norm2(self.mlp(x))


class NoFirstResidual(Layer):
    def forward(self, x):
        x = self.attend(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class NoSecondResidual(Layer):
    def forward(self, x):
        x = x + self.attend(self.layer_norm1(x))
        return self.mlp(self.layer_norm2(x))


class NoResiduals(Layer):
    def forward(self, x):
        return self.mlp(self.layer_norm2(self.attend(self.layer_norm1(x))))


class OldResidual(Layer):
    def forward(self, x):
        attended = x + self.attend(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(attended))


class Parallel(Layer):
    def forward(self, x):
        return x + self.attend(self.layer_norm1(x)) + self.mlp(self.layer_norm2(x))


class NormsSwapped(Layer):
    def forward(self, x):
        x = x + self.attend(self.layer_norm2(x))
        return x + self.mlp(self.layer_norm1(x))


class FirstNormTwice(Layer):
    def forward(self, x):
        x = x + self.attend(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm1(x))


class NoNorms(Layer):
    def forward(self, x):
        x = x + self.attend(x)
        return x + self.mlp(x)


class NoSecondNorm(Layer):
    def forward(self, x):
        x = x + self.attend(self.layer_norm1(x))
        return x + self.mlp(x)


class MlpFirst(Layer):
    def forward(self, x):
        x = x + self.mlp(self.layer_norm2(x))
        return x + self.attend(self.layer_norm1(x))


class TupleAdded(Layer):
    def forward(self, x):
        return x + self.self_attn(self.layer_norm1(x))


class NoFirstNorm(SiglipEncoderLayer):
    def forward(self, x):
        x = x + self.self_attn(x)[0]
        return x + self.mlp(self.layer_norm2(x))


class NoSecondHalf(SiglipEncoderLayer):
    def forward(self, x):
        return x + self.self_attn(self.layer_norm1(x))[0]


class NoFirstHalf(SiglipEncoderLayer):
    def forward(self, x):
        return x + self.mlp(self.layer_norm2(x))


class SecondNormOfThePart(SiglipEncoderLayer):
    def forward(self, x):
        attended = self.self_attn(self.layer_norm1(x))[0]
        return x + attended + self.mlp(self.layer_norm2(attended))


class Halved(SiglipEncoderLayer):
    def forward(self, x):
        x = (x + self.self_attn(self.layer_norm1(x))[0]) / 2
        return (x + self.mlp(self.layer_norm2(x))) / 2


def layer_cases(seed):
    k = larger(seed)
    yield Case((numbers(seed, 2, 5, 6, scale=2.0),), (config(),), {"B": 2, "N": 5, "D": 6})
    yield Case(
        (numbers(seed, 3, 7 + k, 4 + 2 * k, shift=1.0),),
        (config(4 + 2 * k, 11),),
        {"B": 3, "N": 7 + k, "D": 4 + 2 * k},
        note="about 1",
    )


def zeroed_parts_make_it_the_identity(kind) -> Finding | None:
    """With both parts silenced, a pre-norm layer hands on what it got."""
    layer = kind(config())
    with torch.no_grad():
        for part in (layer.self_attn.out_proj, layer.mlp.fc2):
            part.weight.zero_()
            part.bias.zero_()
        x = numbers(1, 2, 5, 6)
        gap = (layer(x) - x).abs().max()
    if gap < 1e-6:
        return None
    return Finding("no identity", f"with attention and MLP silenced, the layer changes its input by {gap:.2g}",
                   "what is added to must be what came in, not a normalised copy")  # fmt: skip


def show_layer(kind):
    layer = kind(config())
    with torch.no_grad():
        for part in (layer.self_attn.out_proj, layer.mlp.fc2):
            part.weight.zero_()
            part.bias.zero_()
        x = numbers(1, 2, 5, 6)
        print(f"  with attention and MLP silenced, the layer changes its input by {(layer(x) - x).abs().max():.0f}")


LAYER = Task(
    id="04.3",
    from_memory=True,
    importance="core",
    title="SiglipEncoderLayer",
    points=3,
    minutes=12,
    level="medium",
    reference=SiglipEncoderLayer,
    cases=layer_cases,
    see='chapter 04, "The layer"; the hints of this task',
    extra=[zeroed_parts_make_it_the_identity],
    reward=show_layer,
    mistakes=[
        Mistake("residual from the normalised input", "what you add to is the normalised copy, in both places. Every "
                "shape is right, and the sum that should run through the whole network ends at each norm",
                ResidualFromNormed),
        Mistake("residual from the normalised input", "what the attention's output is added to is the normalised copy",
                FirstResidualFromNormed),
        Mistake("residual from the normalised input", "what the MLP's output is added to is the normalised copy",
                SecondResidualFromNormed),
        Mistake("norm after the sum", "your norms come after the sums (as in 2017, \"post-norm\"): here they come "
                "before the parts", PostNorm),
        Mistake("norm after the part", "your norms come after attention and MLP: here they come before", OutputNorm),
        Mistake("residual forgotten", "the attention's output replaces what came in", NoFirstResidual),
        Mistake("residual forgotten", "the MLP's output replaces what came in", NoSecondResidual),
        Mistake("residual forgotten", "nothing is added to what came in", NoResiduals),
        Mistake("first sum lost", "the MLP's output is added to what came into the layer: the attention's sum is lost",
                OldResidual),
        Mistake("side by side", "attention and MLP both read what came into the layer: the MLP is to read the sum",
                Parallel),
        Mistake("norms swapped", "the two norms have each other's weights", NormsSwapped),
        Mistake("one norm used twice", "the first norm is used in both places", FirstNormTwice),
        Mistake("norm forgotten", "your numbers are those you get without norms", NoNorms),
        Mistake("norm forgotten", "your numbers are those you get without the second norm", NoSecondNorm),
        Mistake("norm forgotten", "the attention reads the tokens as they came, without the first norm", NoFirstNorm),
        Mistake("half forgotten", "what you return is the sum after the attention: the second half, norm and MLP, is "
                "missing", NoSecondHalf),
        Mistake("half forgotten", "what you return has no attention in it", NoFirstHalf),
        Mistake("sum not normalised", "the second norm gets the attention's output alone: it is to get the sum",
                SecondNormOfThePart),
        Mistake("sums halved", "the sums are divided by two: a residual is a sum, not a mean", Halved),
        Mistake("MLP first", "the MLP comes before the attention", MlpFirst),
        Mistake("tuple added", "attention returns two things, output and weights: one of them is to be added",
                TupleAdded),
    ],
)  # fmt: skip

# --- 04.4 --------------------------------------------------------------------------------------------------------


def sigmoid_loss(logits, fits):
    return -F.logsigmoid((2.0 * fits - 1) * logits).sum() / len(logits)


def loss_cases(seed):
    k = larger(seed)
    yield Case((numbers(seed, 5 + k, 5 + k, scale=2.0), torch.eye(5 + k).bool()), sizes={"n": 5 + k})
    start = numbers(seed, 3, 3, scale=10.0, shift=-10.0)
    yield Case((start, torch.eye(3).bool()), sizes={"n": 3}, note="about -10, as at the start")
    far = 200 * torch.eye(4) - 100 + numbers(seed, 4, 4)
    yield Case((-far, torch.eye(4).bool()), sizes={"n": 4}, note="very sure and wrong: 100 in size", tolerance=1e-4)
    twice = torch.eye(4 + k).bool()
    twice[0, 2] = twice[2, 0] = True
    yield Case((numbers(seed, 4 + k, 4 + k), twice), sizes={"n": 4 + k}, note="pictures 0 and 2 show the same")
    fits = torch.eye(6).bool()[:4] | torch.eye(6).roll(-2, 0).bool()[:4]
    yield Case((numbers(seed, 4, 6), fits), sizes={"n": 4, "m": 6}, note="more texts than pictures")


CLAMPS = (1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12)


def clip_loss(logits, fits):
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def diagonal(logits, fits):
    """Each picture with the text of its own number, and no other: what the chapter's loss takes for granted."""
    return torch.eye(*logits.shape).bool()


def show_loss(thing):
    def loss(logits):
        return float(thing(logits, torch.eye(len(logits)).bool()))

    print("  pictures   own texts   yes to the neighbour's   yes to everything")
    for n in (3, 8, 32):
        own = 8 * torch.eye(n) - 4
        print(f"  {n:8} {loss(own):11.2f} {loss(own.roll(1, 0)):24.2f} {loss(torch.full((n, n), 4.0)):19.2f}")


LOSS = Task(
    id="04.4",
    title="SigLIP's loss, when two pictures show the same",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    reference=sigmoid_loss,
    cases=loss_cases,
    see='chapter 04, "SigLIP: every pair a yes-or-no question"; the hints of this task',
    reward=show_loss,
    prediction=Prediction(
        "A batch of 32 pictures: which loss is larger, that of a model that says yes to every pair, or that of one "
        "that says yes to each picture's neighbour and no to all else?",
        truth="yes to everything",
        tempting="yes to the neighbour",
        why="Yes to the neighbour is one wrong yes and one wrong no for each picture, however many there are. Yes to "
        "everything is 31 wrong yeses for each picture, and more with every picture that joins. With three "
        "pictures the two happen to be equal.",
        options=("yes to everything", "yes to the neighbour", "both the same"),
    ),
    mistakes=[
        Mistake("only the diagonal", "you take the matching pairs to be those of equal number: `fits` says which "
                "match, and a picture can have two texts that fit", [
                    lambda logits, fits: sigmoid_loss(logits, diagonal(logits, fits)),
                    lambda logits, fits: sigmoid_loss(logits, torch.eye(len(logits)))]),
        Mistake("softmax loss", "your number is CLIP's loss: each picture chooses among all texts, and each text among "
                "all pictures. Here every pair is a question of its own", clip_loss),
        Mistake("softmax loss", "your number is the cross-entropy over the texts of each picture",
                lambda logits, fits: F.cross_entropy(logits, torch.arange(len(logits)))),
        Mistake("softmax loss", "your softmax lets the texts of a picture compete: here every pair is a question of "
                "its own, and what a text gets takes nothing from the others",
                [lambda logits, fits: -(logits.log_softmax(-1) * fits).sum() / len(logits),
                 lambda logits, fits: -(logits.log_softmax(0) * fits).sum() / len(logits)]),
        Mistake("clamped", "the probability is kept away from 0 (a clamp, or a small number that is added): what it "
                "costs to be very sure and wrong then stops growing", [
                    lambda logits, fits, least=least: -torch.sigmoid((2.0 * fits - 1) * logits).clamp(
                        min=least).log().sum() / len(logits) for least in CLAMPS] + [
                    lambda logits, fits, least=least: -(torch.sigmoid((2.0 * fits - 1) * logits) + least
                                                        ).log().sum() / len(logits) for least in CLAMPS]),
        Mistake("squared error", "your loss is a squared error of probabilities: minus the logarithm is asked for",
                [lambda logits, fits: (torch.sigmoid(logits) - fits.float()).square().sum() / len(logits),
                 lambda logits, fits: (torch.sigmoid(logits) - fits.float()).square().mean()]),
        Mistake("matching pairs only", "only the matching pairs count: saying yes to everything would cost nothing",
                lambda logits, fits: -(F.logsigmoid(logits) * fits).sum() / len(logits)),
        Mistake("wrong pairs count nothing", "with labels 1 and 0, the pairs that do not belong together always cost "
                "log 2", lambda logits, fits: -F.logsigmoid(fits * logits).sum() / len(logits)),
        Mistake("mean over all pairs", "you take the mean over all pairs: the paper sums over the texts of a picture "
                "and takes the mean over the pictures",
                lambda logits, fits: sigmoid_loss(logits, fits) / logits.shape[1]),
        Mistake("mean over the texts", "you divide by the number of texts: the loss is a mean over the pictures, the "
                "rows", lambda logits, fits: sigmoid_loss(logits, fits) * len(logits) / logits.shape[1]),
        Mistake("sum over all pairs", "you sum over everything: the loss is to be a mean over the pictures",
                lambda logits, fits: sigmoid_loss(logits, fits) * len(logits)),
        Mistake("mean over the matching pairs", "you divide by the number of matching pairs: the loss is a mean over "
                "the pictures", lambda logits, fits: sigmoid_loss(logits, fits) * len(logits) / fits.sum()),
        Mistake("labels upside down", "the labels are the wrong way round: pairs that belong together are pushed apart",
                lambda logits, fits: sigmoid_loss(-logits, fits)),
        Mistake("sign", "your loss has the wrong sign: it falls when the answers get worse",
                lambda logits, fits: -sigmoid_loss(logits, fits)),
        Mistake("no logarithm", "your number adds up probabilities and not their logarithms",
                lambda logits, fits: -torch.sigmoid((2.0 * fits - 1) * logits).sum() / len(logits)),
        Mistake("logarithm of zero", "for -100, the sigmoid is 0 in float32, and its logarithm minus infinity: there "
                "is a function that does both at once and stays finite",
                lambda logits, fits: -torch.sigmoid((2.0 * fits - 1) * logits).log().sum() / len(logits)),
        Mistake("matching pairs at -1", "the sign is applied to the sigmoid's logarithm and not inside it",
                lambda logits, fits: -((2.0 * fits - 1) * F.logsigmoid(logits)).sum() / len(logits)),
    ],
)  # fmt: skip

# --- 04.5 --------------------------------------------------------------------------------------------------------

MATRICES = {
    "A": "every text the same",
    "B": "untrained image encoder",
    "C": "texts moved on by one",
    "D": "as it was trained",
    "E": "colours left out of the texts",
}


@functools.cache
def probabilities(name: str) -> torch.Tensor:
    """The probabilities [6, 6] that picture i and text j belong together, by the trained pair of towers."""
    pair, processor = load_tiny_siglip(), trained()[1]
    six = scenes(24)[2:8]
    texts = [caption(scene) for scene in six]
    if name == "every text the same":
        texts = texts[:1] * 6
    if name == "texts moved on by one":
        texts = texts[1:] + texts[:1]
    if name == "colours left out of the texts":
        texts = [" ".join(word for word in text.split() if word not in COLOURS) for text in texts]
    if name == "untrained image encoder":
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in pair.vision_tower.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    pixels = processor(text=[PROMPT] * 6, images=[draw(scene) for scene in six])["pixel_values"]
    with torch.no_grad():
        return pair(pixels, text_ids(processor.tokenizer, texts)).sigmoid()


def show_matrices() -> None:
    """Draw the similarity matrix of six pictures and six texts under five conditions: panels A to E, in hundredths."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so its image encoder cannot be asked.")
        return
    draw_in_hundredths({panel: probabilities(name) for panel, name in MATRICES.items()}, "picture", "text")


READ = matching_task(
    id="04.5",
    title="five matrices of six pictures and six texts",
    points=3,
    minutes=10,
    level="easy",
    importance="core",
    truth=MATRICES,
    confusions={
        frozenset(
            {"colours left out of the texts", "untrained image encoder"}
        ): "in one of the two, some pictures still "
        "prefer their own text a little; an encoder that has learned nothing prefers none",
        frozenset({"as it was trained", "colours left out of the texts"}): "both have the diagonal. Which one is less "
        "sure, or sure of more than one text?",
        frozenset({"as it was trained", "texts moved on by one"}): "on the diagonal are a picture and the text of the "
        "same number: where does each picture find its own text, when text 1 stands at place 0?",
    },
    see='chapter 04, "Which caption belongs to which picture?"; the hints of this task',
    reward=lambda solution: print(
        "  the same picture of the numbers, before a loss is looked at: this is where to look"
    ),
)

# --- 04.6 --------------------------------------------------------------------------------------------------------


class ResidualFromNorm(SiglipEncoderLayer):
    """The layer with both of its residuals taken from the normalised input."""

    first = second = True

    def forward(self, hidden_states):
        normed = self.layer_norm1(hidden_states)
        hidden_states = (normed if self.first else hidden_states) + self.self_attn(normed)[0]
        normed = self.layer_norm2(hidden_states)
        return (normed if self.second else hidden_states) + self.mlp(normed)


class AttentionOfTheInput(SiglipEncoderLayer):
    def forward(self, hidden_states):
        hidden_states = self.layer_norm1(hidden_states) + self.self_attn(hidden_states)[0]
        normed = self.layer_norm2(hidden_states)
        return normed + self.mlp(normed)


class NoResidual(SiglipEncoderLayer):
    def forward(self, hidden_states):
        return self.mlp(self.layer_norm2(self.self_attn(self.layer_norm1(hidden_states))[0]))


class FirstNormForBoth(SiglipEncoderLayer):
    def forward(self, hidden_states):
        normed = self.layer_norm1(hidden_states)
        return normed + self.mlp(self.layer_norm2(normed + self.self_attn(normed)[0]))


class OneNormTwice(SiglipEncoderLayer):
    def forward(self, hidden_states):
        normed = self.layer_norm1(hidden_states)
        normed = self.layer_norm1(normed + self.self_attn(normed)[0])
        return normed + self.mlp(normed)


def show_broken(kind):
    """How much of the captions the learner's broken layer leaves."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so nothing can be measured.")
        return
    show_words_kept(words_kept(SiglipEncoderLayer=kind), what="your layer")


BROKEN = Task(
    id="04.6",
    from_memory=True,
    title="break the layer, and measure",
    points=3,
    minutes=10,
    level="easy",
    importance="core",
    reference=ResidualFromNorm,
    cases=layer_cases,
    see='chapter 04, "Break it" and "The layer"; the hints of this task',
    reward=show_broken,
    prediction=Prediction(
        "Both residuals taken from the normalised input, in all layers of the trained image encoder: how many of 24 "
        "captions stay as they were, and which words suffer most?",
        truth=lambda: taken(SiglipEncoderLayer=ResidualFromNorm),
        tempting={"captions": 0, "suffers most": "colours"},
        why="The normalised input holds the same features, at another size: what each patch shows survives most "
        "layers. What the patches have told one another adds up along the untouched path, and each norm on that path "
        "weighs it anew: relations, which need several patches, go first. One picture of four survives whole, so a "
        "test with one picture misses this fault one time in four.",
        options=tuple(KINDS),
    ),
    mistakes=[
        Mistake("not broken", "your layer computes what the right one computes: the residual still comes from the "
                "input", SiglipEncoderLayer),
        Mistake("one residual", "the second residual, around the MLP, still comes from its input",
                type("First", (ResidualFromNorm,), {"second": False})),
        Mistake("one residual", "the first residual, around the attention, still comes from its input",
                type("Second", (ResidualFromNorm,), {"first": False})),
        Mistake("attention of the input", "the attention reads the input as it came: it is to read the normalised one, "
                "to which its result is added", AttentionOfTheInput),
        Mistake("no residual", "nothing is added any more: the residuals are to stay, taken from the normalised input",
                NoResidual),
        Mistake("norm after the sum", "your norms come after the sums: they are to stay before the parts, and the "
                "residual to come from what they give", PostNorm),
        Mistake("first norm for both", "the MLP's result is added to the output of the first norm: it is to be added "
                "to what went into the MLP", FirstNormForBoth),
        Mistake("one norm used twice", "the first norm is used in both places", OneNormTwice),
    ],
)  # fmt: skip

TASKS = [NORM, EXPOSE, LAYER, LOSS, READ, BROKEN]
