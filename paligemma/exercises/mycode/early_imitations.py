"""Wrong versions of the parts of the image encoder and the processor, for code typed from the video.

See imitations.py: each Mistake names what such a version gives, and what that usually means.
"""

import numpy as np
import torch
from torch.nn import functional as F

from ...modeling_siglip import SiglipMLP, SiglipVisionTransformer
from ..tasks import Mistake


def as32(function):
    return lambda image, mean, std: function(image, np.array(mean), np.array(std)).astype(np.float32)


RESCALES = [
    Mistake(
        "computed in uint8",
        "your numbers are those you get when the product is taken in 8 bits: it starts afresh after 255",
        lambda image, scale: (image * np.uint8(scale)).astype(np.float32),
    ),
    Mistake(
        "rounded to whole numbers",
        "the fraction is cut off: only whole numbers are left",
        lambda image, scale: np.floor(image * scale).astype(np.float32),
    ),
    Mistake(
        "divided by the scale",
        "your numbers are divided by the scale instead of multiplied",
        lambda image, scale: (image / scale).astype(np.float32),
    ),
    Mistake(
        "scale not used",
        "255 is written into your function: the scale that is passed says what to multiply by",
        lambda image, scale: (image / 255).astype(np.float32),
    ),
    Mistake(
        "float64",
        "the numbers are right, and twice as long as the model's: numpy computes in float64 unless told otherwise",
        lambda image, scale: image * np.float64(scale),
    ),
    Mistake(
        "stretched to the full range",
        "your numbers run from 0 to 1 for every picture: a dark picture must remain dark",
        lambda image, scale: ((image - image.min()) / (image.max() - image.min())).astype(np.float32),
    ),
]

NORMALIZES = [
    Mistake("divided before subtracting", "your numbers are those you get when dividing first and subtracting the "
            "mean after: brackets", as32(lambda image, mean, std: image / std - mean)),
    Mistake("bracket missing", "your numbers are those of image - mean / std: division binds more tightly",
            as32(lambda image, mean, std: image - mean / std)),
    Mistake("multiplied by std", "your numbers are multiplied by std instead of divided",
            as32(lambda image, mean, std: (image - mean) * std)),
    Mistake("variance instead of std", "your numbers are divided by the square of std",
            as32(lambda image, mean, std: (image - mean) / std**2)),
    Mistake("root of std", "your numbers are divided by the root of std: std is the root already",
            as32(lambda image, mean, std: (image - mean) / std**0.5)),
    Mistake("one number for all channels", "the first channel's mean and std are used for all three",
            as32(lambda image, mean, std: (image - mean[0]) / std[0])),
    Mistake("mean and std swapped", "your numbers are those you get with mean and std exchanged",
            as32(lambda image, mean, std: (image - std) / mean)),
    Mistake("mean added", "the mean is added instead of subtracted",
            as32(lambda image, mean, std: (image + mean) / std)),
    Mistake("mean of the picture", "the picture's own mean and std are used: then a dark picture looks like a "
            "bright one", as32(lambda image, mean, std: (image - image.mean((0, 1))) / image.std((0, 1)))),
    Mistake("fixed to 0.5", "0.5 is written into your function: mean and std are arguments",
            as32(lambda image, mean, std: (image - 0.5) / 0.5)),
    Mistake("float64", "the numbers are right, and twice as long as what came in",
            lambda image, mean, std: (image.astype(np.float64) - np.array(mean)) / np.array(std)),
]  # fmt: skip

PROMPTS = [
    Mistake("spaces cut off", "spaces at the ends of a prompt are part of it: yours are cut off",
            lambda prompt, bos, count, image: image * count + bos + prompt.strip() + "\n"),
    Mistake("newline forgotten", "the newline at the end is missing: in training it told the model that the prompt "
            "is over", lambda prompt, bos, count, image: image * count + bos + prompt),
    Mistake("BOS forgotten", "the token that begins every text is missing",
            lambda prompt, bos, count, image: image * count + prompt + "\n"),
    Mistake("BOS first", "the picture comes before the text, and so before what begins the text",
            lambda prompt, bos, count, image: bos + image * count + prompt + "\n"),
    Mistake("picture last", "the text comes before the picture",
            lambda prompt, bos, count, image: bos + prompt + "\n" + image * count),
    Mistake("one image token", "there is one image token: each patch needs one of its own",
            lambda prompt, bos, count, image: image + bos + prompt + "\n"),
    Mistake("spaces between", "there are spaces between the parts: each of them would become a token",
            lambda prompt, bos, count, image: f"{image * count} {bos} {prompt}\n"),
    Mistake("spaces between", "there are spaces between the image tokens: each of them would become a token",
            lambda prompt, bos, count, image: " ".join([image] * count) + bos + prompt + "\n"),
    Mistake("spaces between", "there is a space before the prompt: it would become part of the first token",
            lambda prompt, bos, count, image: f"{image * count}{bos} {prompt}\n"),
    Mistake("newline too early", "the newline stands before the prompt",
            lambda prompt, bos, count, image: image * count + bos + "\n" + prompt),
    Mistake("name written in", "the name of a token is written into your function: it is an argument",
            lambda prompt, bos, count, image: "<image>" * count + bos + prompt + "\n"),
    Mistake("name written in", "the name of a token is written into your function: it is an argument",
            lambda prompt, bos, count, image: image * count + "<bos>" + prompt + "\n"),
]  # fmt: skip


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


IMAGE_MLPS = [
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
]  # fmt: skip


class LastNormFirst(SiglipVisionTransformer):
    def forward(self, x):
        return self.encoder(self.post_layernorm(self.embeddings(x)))


class LastNormEachLayer(SiglipVisionTransformer):
    def forward(self, x):
        x = self.embeddings(x)
        for layer in self.encoder.layers:
            x = self.post_layernorm(layer(x))
        return x


class LayersBackwards(SiglipVisionTransformer):
    def forward(self, x):
        x = self.embeddings(x)
        for layer in reversed(self.encoder.layers):
            x = layer(x)
        return self.post_layernorm(x)


ENCODERS = [
    Mistake("last norm too early", "`post_layernorm` comes before the layers: post means after", LastNormFirst),
    Mistake("last norm in the loop", "`post_layernorm` is applied after every layer: it comes once, at the end",
            LastNormEachLayer),
    Mistake("layers backwards", "the layers run in the other order", LayersBackwards),
]  # fmt: skip

REPEATS = [
    Mistake(
        "repeat instead of repeat_interleave",
        "your heads come as 0 1 0 1: the whole block is put down again, so that query head 1 gets the keys of "
        "another group. With one KV head nobody would notice",
        lambda x, n_rep: x.repeat(1, n_rep, 1, 1),
    ),
    Mistake("wrong axis", "the tokens are repeated, and not the heads", lambda x, n: x.repeat_interleave(n, 2)),
    Mistake("wrong axis", "the tokens are repeated, and not the heads", lambda x, n: x.repeat(1, 1, n, 1)),
    Mistake("wrong axis", "the features are repeated, and not the heads", lambda x, n: x.repeat_interleave(n, 3)),
    Mistake("wrong axis", "the rows of the batch are repeated", lambda x, n: x.repeat_interleave(n, 0)),
    Mistake(
        "all axes repeated", "without an axis, everything is repeated and flattened",
        lambda x, n: x.repeat_interleave(n),
    ),
    Mistake("not repeated", "the heads are as many as before", lambda x, n_rep: x),
    Mistake(
        "one too many", "each head is there n_rep + 1 times: n_rep counts the original",
        lambda x, n: x.repeat_interleave(n + 1, 1),
    ),
    Mistake(
        "axes not merged", "the copies have an axis of their own: it is to be merged with that of the heads",
        lambda x, n: x[:, :, None].expand(-1, -1, n, -1, -1),
    ),
]  # fmt: skip
