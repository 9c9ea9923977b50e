"""Chapter 04: the image encoder, and how it was trained."""

import torch
from torch.nn import functional as F

from ..modeling_siglip import (
    SiglipEncoderLayer,
    SiglipMLP,
    SiglipVisionConfig,
    SiglipVisionTransformer,
)
from .tasks import Case, Finding, Mistake, Task, faults_left, larger, numbers, written_by_hand
from .watching import picture, swap_task, trained

# --- 04.1 --------------------------------------------------------------------------------------------------------


def layer_norm(x, weight, bias, eps=1e-6, axes=-1, correction=0):
    mean = x.mean(axes, keepdim=True)
    return (x - mean) / (x.var(axes, keepdim=True, correction=correction) + eps).sqrt() * weight + bias


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
    for row, normed in zip(x.tolist(), thing(x, torch.ones(4), torch.zeros(4)).tolist()):
        print(f"  {row} -> {[round(value, 2) for value in normed]}")


def varied(function):
    return lambda x, weight, bias, eps=1e-6: function(x, weight, bias, eps)


NORM = Task(
    id="04.1",
    title="layer norm",
    points=2,
    minutes=8,
    level="easy",
    reference=layer_norm,
    cases=norm_cases,
    tolerance=2e-5,
    see='chapter 04, "A layer norm"; the hints of this task',
    extra=[written_by_hand(("native_layer_norm",), "torch's layer norm", torch.ones(2, 3), *torch.ones(2, 3))],
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


def mlp(bend):
    class Variant(SiglipMLP):
        def forward(self, x):
            return self.fc2(bend(self.fc1(x)))

    return Variant


class BendAfter(SiglipMLP):
    def forward(self, x):
        return F.gelu(self.fc2(self.fc1(x)), approximate="tanh")


class BendTwice(SiglipMLP):
    def forward(self, x):
        return F.gelu(self.fc2(F.gelu(self.fc1(x), approximate="tanh")), approximate="tanh")


class WithResidual(SiglipMLP):
    def forward(self, x):
        return x + super().forward(x)


class NoBias(SiglipMLP):
    def forward(self, x):
        return F.linear(F.gelu(F.linear(x, self.fc1.weight), approximate="tanh"), self.fc2.weight)


def mlp_cases(seed):
    k = larger(seed)
    yield Case((numbers(seed, 2, 5, 6),), (config(),), {"B": 2, "N": 5, "D": 6, "wide": 10})
    yield Case((numbers(seed, 2, 5, 6, scale=3.0),), (config(),), {"B": 2, "N": 5, "D": 6, "wide": 10}, note="larger")
    yield Case(
        (numbers(seed, 3, 7 + k, 4 + 2 * k),),
        (config(4 + 2 * k, 11),),
        {"B": 3, "N": 7 + k, "D": 4 + 2 * k, "wide": 11},
    )


def show_mlp(kind):
    module = kind(config(4, 9))
    count = sum(parameter.numel() for parameter in module.parameters())
    print(f"  4 -> 9 -> 4 has {count} parameters; at So400m's size, 1152 -> 4304 -> 1152, 9.9 million a layer")


MLP = Task(
    id="04.2",
    title="SiglipMLP",
    points=2,
    minutes=6,
    level="easy",
    reference=SiglipMLP,
    cases=mlp_cases,
    tolerance=2e-6,
    see='chapter 04, "The MLP"; the hints of this task',
    reward=show_mlp,
    mistakes=[
        Mistake("exact GELU", "your numbers are those of the exact GELU. The form that the weights were trained with "
                "differs from it by at most 5e-4 a number, and 27 layers add up", mlp(F.gelu)),
        Mistake("other GELU", "your numbers are those of x * sigmoid(1.702 x), the rougher form that CLIP uses",
                mlp(lambda x: x * torch.sigmoid(1.702 * x))),
        Mistake("other bend", "your numbers are those you get with ReLU", mlp(F.relu)),
        Mistake("other bend", "your numbers are those you get with SiLU", mlp(F.silu)),
        Mistake("other bend", "your numbers are those you get with tanh", mlp(torch.tanh)),
        Mistake("other bend", "your numbers are those you get with the sigmoid", mlp(torch.sigmoid)),
        Mistake("no bend", "two linear maps in a row are one: nothing bends between them", mlp(lambda x: x)),
        Mistake("bend in the wrong place", "the bend comes after the second map instead of between the two", BendAfter),
        Mistake("bend twice", "there is a second bend after the second map", BendTwice),
        Mistake("residual inside", "the input is added to the result: the layer around it does that, not the MLP",
                WithResidual),
        Mistake("no bias", "your numbers are those you get without the biases", NoBias),
    ],
)  # fmt: skip

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
        Mistake("MLP first", "the MLP comes before the attention", MlpFirst),
        Mistake("tuple added", "attention returns two things, output and weights: one of them is to be added",
                TupleAdded),
    ],
)  # fmt: skip

# --- 04.4 --------------------------------------------------------------------------------------------------------


def sigmoid_loss(logits):
    labels = 2 * torch.eye(len(logits)) - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)


def loss_cases(seed):
    k = larger(seed)
    yield Case((numbers(seed, 5 + k, 5 + k, scale=2.0),), sizes={"n": 5 + k})
    yield Case((numbers(seed, 3, 3, scale=10.0, shift=-10.0),), sizes={"n": 3}, note="about -10, as at the start")
    far = 200 * torch.eye(4) - 100 + numbers(seed, 4, 4)
    yield Case((-far,), sizes={"n": 4}, note="very sure and wrong: 100 in size", tolerance=1e-4)


def clip_loss(logits):
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def show_loss(thing):
    logits = torch.tensor([[4.0, -4.0, -4.0], [-4.0, 4.0, -4.0], [-4.0, -4.0, 4.0]])
    print(f"  three pictures with their own texts      {thing(logits):.3f}")
    print(f"  the same, texts moved on by one          {thing(logits.roll(1, 0)):.3f}")
    print(f"  everything says yes                      {thing(torch.full((3, 3), 4.0)):.3f}")


LOSS = Task(
    id="04.4",
    title="SigLIP's loss",
    points=3,
    minutes=12,
    level="medium",
    reference=sigmoid_loss,
    cases=loss_cases,
    see='chapter 04, "SigLIP: every pair a yes-or-no question"; the hints of this task',
    reward=show_loss,
    mistakes=[
        Mistake("softmax loss", "your number is CLIP's loss: each picture chooses among all texts, and each text among "
                "all pictures. Here every pair is a question of its own", clip_loss),
        Mistake("softmax loss", "your number is the cross-entropy over the texts of each picture",
                lambda logits: F.cross_entropy(logits, torch.arange(len(logits)))),
        Mistake("matching pairs only", "only the matching pairs count: saying yes to everything would cost nothing",
                lambda logits: -F.logsigmoid(logits.diagonal()).mean()),
        Mistake("wrong pairs count nothing", "with labels 1 and 0, the pairs that do not belong together always cost "
                "log 2", lambda logits: -F.logsigmoid(torch.eye(len(logits)) * logits).sum() / len(logits)),
        Mistake("mean over all pairs", "you take the mean over all pairs: the paper sums over the texts of a picture "
                "and takes the mean over the pictures",
                lambda logits: sigmoid_loss(logits) / len(logits)),
        Mistake("sum over all pairs", "you sum over everything: the loss is to be a mean over the pictures",
                lambda logits: sigmoid_loss(logits) * len(logits)),
        Mistake("labels upside down", "the labels are the wrong way round: pairs that belong together are pushed apart",
                lambda logits: sigmoid_loss(-logits)),
        Mistake("sign", "your loss has the wrong sign: it falls when the answers get worse",
                lambda logits: -sigmoid_loss(logits)),
        Mistake("no logarithm", "your number adds up probabilities and not their logarithms",
                lambda logits: -torch.sigmoid((2 * torch.eye(len(logits)) - 1) * logits).sum() / len(logits)),
        Mistake("logarithm of zero", "for -100, the sigmoid is 0 in float32, and its logarithm minus infinity: there "
                "is a function that does both at once and stays finite",
                lambda logits: -torch.sigmoid((2 * torch.eye(len(logits)) - 1) * logits).log().sum() / len(logits)),
        Mistake("matching pairs at -1", "the sign is applied to the sigmoid's logarithm and not inside it",
                lambda logits: -((2 * torch.eye(len(logits)) - 1) * F.logsigmoid(logits)).sum() / len(logits)),
    ],
)  # fmt: skip

# --- 04.5 --------------------------------------------------------------------------------------------------------


class Listing(SiglipVisionTransformer):
    """The class that is printed in the exercise, with its three faults."""

    shared = True
    restarts = True
    no_last_norm = True

    def forward(self, x):
        embedded = hidden = self.embeddings(x)
        for layer in self.encoder.layers:
            layer = self.encoder.layers[0] if self.shared else layer
            hidden = layer(embedded if self.restarts else hidden)
        return hidden if self.no_last_norm else self.post_layernorm(hidden)


FAULTS = {  # what can be observed of each, and its name
    "shared": ("all layers have the same weights", "left: the layers"),
    "restarts": ("each layer starts from the beginning, so only the last one matters", "left: the loop"),
    "no_last_norm": ("one of the trained parts has no influence", "left: a part"),
}


class LastNormFirst(Listing):
    def forward(self, x):
        return self.encoder(self.post_layernorm(self.embeddings(x)))


class LastNormEachLayer(Listing):
    def forward(self, x):
        x = self.embeddings(x)
        for layer in self.encoder.layers:
            x = self.post_layernorm(layer(x))
        return x


class LayersBackwards(Listing):
    def forward(self, x):
        x = self.embeddings(x)
        for layer in reversed(self.encoder.layers):
            x = layer(x)
        return self.post_layernorm(x)


def transformer_cases(seed):
    k = larger(seed)
    yield Case((numbers(seed, 2, 3, 8, 8),), (config(layers=3),), {"B": 2, "N": 4, "D": 6})
    yield Case(
        (numbers(seed, 4 + k, 3, 12, 12),), (config(10 + 2 * k, 7, 2, 3),), {"B": 4 + k, "N": 9, "D": 10 + 2 * k}
    )


def show_features(kind):
    """Patch features of the trained encoder as colours, layer by layer, through the learner's class."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so its features cannot be seen.")
        return
    from ..swap import swap
    from ..visualize import show_images  # here: matplotlib is not needed for anything else

    model, processor = trained()
    image = picture(2)
    pixels = processor(text=["caption en"], images=[image])["pixel_values"]
    with swap(model, SiglipVisionTransformer=kind), torch.no_grad():
        features = model.vision_tower(pixels)[0]  # [N, D]
    features = features - features.mean(0)
    _, _, directions = torch.linalg.svd(features, full_matrices=False)
    colours = features @ directions[:3].T  # [N, 3]: the three directions in which patches differ most
    low, high = colours.amin(0), colours.amax(0)
    side = round(len(colours) ** 0.5)
    colours = ((colours - low) / (high - low)).reshape(side, side, 3)
    print("What your encoder makes of each patch; patches of one colour here are alike for it:")
    show_images([image, colours], titles=["picture", "features"])


BUGS = Task(
    id="04.5",
    title="find the three faults",
    points=3,
    minutes=10,
    level="hard",
    reference=SiglipVisionTransformer,
    cases=transformer_cases,
    tolerance=5e-5,
    see="the hints of this task: what would you change to see each fault?",
    reward=show_features,
    mistakes=[
        *faults_left(FAULTS, lambda some: type("Left", (Listing,), {fault: fault in some for fault in FAULTS})),
        Mistake("last norm too early", "`post_layernorm` comes before the layers: post means after", LastNormFirst),
        Mistake("last norm in the loop", "`post_layernorm` is applied after every layer: it comes once, at the end",
                LastNormEachLayer),
        Mistake("layers backwards", "the layers run in the other order", LayersBackwards),
    ],
)  # fmt: skip

TASKS = [
    NORM, MLP, LAYER, LOSS, BUGS,
    swap_task("04.6", ("SiglipEncoderLayer", "SiglipMLP"), see="the hints of this task"),
]  # fmt: skip
