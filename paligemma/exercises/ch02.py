"""Chapter 02: from pixels to tokens."""

import numpy as np
import torch
from torch.nn import functional as F

from ..modeling_siglip import SiglipVisionConfig, SiglipVisionEmbeddings
from .tasks import Case, Mistake, Task, faults_left, larger, numbers
from .watching import picture, swap_task, trained

# --- 02.1 --------------------------------------------------------------------------------------------------------


def patch_box(index, width, patch_size):
    row, column = divmod(index, width // patch_size)
    return (row * patch_size, column * patch_size, (row + 1) * patch_size, (column + 1) * patch_size)


def box_cases(seed):
    for index, width, patch_size in ((0, 24, 8), (1, 24, 8), (5, 24, 8), (7, 224, 14), (100 + seed, 224, 14)):
        note = f"token {index}, picture {width} pixels wide, patches of {patch_size}"
        yield Case((index, width, patch_size), note=note)


def show_box(thing):
    boxes = [thing(index, 64, 8) for index in (0, 7, 8, 63)]
    for index, box in zip((0, 7, 8, 63), boxes):
        print(f"  token {index:2} of a 64 x 64 picture: y {box[0]:2} to {box[2]:2}, x {box[1]:2} to {box[3]:2}")


BOX = Task(
    id="02.1",
    title="which patch is token 37?",
    points=1,
    minutes=5,
    level="easy",
    reference=patch_box,
    cases=box_cases,
    gradients=False,
    see='chapter 02, "By hand"; the hints of this task',
    reward=show_box,
    mistakes=[
        Mistake(
            "y and x swapped",
            "your numbers are right with x first: boxes in this course are (y1, x1, y2, x2)",
            lambda index, width, size: tuple(patch_box(index, width, size)[i] for i in (1, 0, 3, 2)),
        ),
        Mistake(
            "last pixel included",
            "your box ends one pixel early: its end is the first pixel that is no longer in it, as in a slice",
            lambda index, width, size: tuple(value - (i > 1) for i, value in enumerate(patch_box(index, width, size))),
        ),
        Mistake(
            "counted in patches",
            "your numbers count patches: they are to count pixels",
            lambda index, width, size: tuple(value // size for value in patch_box(index, width, size)),
        ),
        Mistake(
            "row length in pixels",
            "you divide by the picture's width in pixels: how many patches fit into a row?",
            lambda index, width, size: (
                index // width * size,
                index % width * size,
                (index // width + 1) * size,
                (index % width + 1) * size,
            ),
        ),
        Mistake(
            "row length is the patch size",
            "you divide by the patch size: how many patches fit into a row?",
            lambda index, width, size: (
                index // size * size,
                index % size * size,
                (index // size + 1) * size,
                (index % size + 1) * size,
            ),
        ),
        Mistake(
            "counted from 1",
            "your box is that of the token before: tokens count from 0",
            lambda index, width, size: patch_box(index - 1, width, size),
        ),
        Mistake(
            "height and width",
            "your last two numbers are the size of the box: they are to be where it ends",
            lambda index, width, size: (*patch_box(index, width, size)[:2], size, size),
        ),
    ],
)

# --- 02.2 --------------------------------------------------------------------------------------------------------


def cut_patches(x, size):
    B, C, H, W = x.shape
    return x.reshape(B, C, H // size, size, W // size, size).permute(0, 2, 4, 1, 3, 5).reshape(B, -1, C * size * size)


def other_order(split_order):
    """Patches with the six axes (B, C, rows, y, columns, x) in another order before they are merged."""

    def cut(x, size):
        B, C, H, W = x.shape
        six = x.reshape(B, C, H // size, size, W // size, size).permute(split_order)
        return six.reshape(B, H // size * W // size, C * size * size)

    return cut


def cut_cases(seed):
    k = larger(seed)
    yield Case((numbers(seed, 2, 3, 8, 12 + 4 * k), 4), sizes={"B": 2, "N": 6 + 2 * k, "C*P*P": 48}, note="P = 4")
    yield Case((numbers(seed, 4, 1, 15, 10), 5), sizes={"B": 4, "N": 6, "C*P*P": 25}, note="P = 5, one channel")
    yield Case((numbers(seed, 2, 3, 6, 6), 2), sizes={"B": 2, "N": 9, "C*P*P": 12}, note="P = 2")


def show_patches(thing):
    from ..visualize import show_images  # here: matplotlib is not needed for anything else

    image = torch.from_numpy(np.array(picture(0))).permute(2, 0, 1)
    patches = thing(image[None].float(), 16)[0]
    print(f"  one picture [1, 3, 64, 64] -> {list(patches.shape)}: {len(patches)} patches of 3 x 16 x 16 numbers")
    pictures = patches.reshape(-1, 3, 16, 16).permute(0, 2, 3, 1) / 255
    for ax in show_images(list(pictures), columns=4, height=1.2):
        ax.set(xticks=[], yticks=[], xlabel="", ylabel="")


CUT = Task(
    id="02.2",
    title="cut a picture into patches",
    points=3,
    minutes=12,
    level="medium",
    reference=cut_patches,
    cases=cut_cases,
    gradients=False,
    see='chapter 02, "Cut, without a loop"; the hints of this task',
    reward=show_patches,
    mistakes=[
        Mistake(
            "reshaped only",
            "your numbers are those you get when the picture is cut like a tape: a patch then holds pieces of whole "
            "rows. `reshape` never moves a number",
            lambda x, size: x.reshape(x.shape[0], -1, x.shape[1] * size * size),
        ),
        Mistake("columns first", "your patches run down the columns: tokens count row by row, like reading",
                other_order((0, 4, 2, 1, 3, 5))),
        Mistake("channels last", "the numbers inside a patch are right, with the colours of a pixel side by side: the "
                "docstring asks for channel by channel", other_order((0, 2, 4, 3, 5, 1))),
        Mistake("patches turned", "each patch lies on its diagonal: its rows and columns are exchanged",
                other_order((0, 2, 4, 1, 5, 3))),
        Mistake("columns first", "your patches run down the columns, and each lies on its diagonal",
                other_order((0, 4, 2, 1, 5, 3))),
        Mistake("channels outside", "the channels are cut apart: each of your rows holds one colour of several patches",
                other_order((0, 1, 2, 4, 3, 5))),
        Mistake("only one axis cut", "the rows are cut and the columns are not", other_order((0, 1, 2, 3, 4, 5))),
        Mistake("only one axis cut", "whole rows of pixels of a patch row lie side by side: the columns still have to "
                "be sorted into patches", other_order((0, 2, 1, 3, 4, 5))),
        Mistake("patches last", "features and patches are exchanged: that is what F.unfold returns",
                lambda x, size: F.unfold(x, size, stride=size)),
        Mistake("not merged", "the axes are in the right order and not merged yet",
                lambda x, size: cut_patches(x, size).unflatten(-1, (x.shape[1], size, size))),
        Mistake("not merged", "rows and columns of patches are still two axes",
                lambda x, size: cut_patches(x, size).unflatten(1, (x.shape[2] // size, x.shape[3] // size))),
    ],
)  # fmt: skip

# --- 02.3 --------------------------------------------------------------------------------------------------------


def embed_patches(x, weight, bias):
    return F.conv2d(x, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)


def embed_cases(seed):
    k = larger(seed)
    weight, bias = numbers(seed, 5, 3, 4, 4, scale=0.2), numbers(seed + 1, 5)
    yield Case(
        (numbers(seed, 2, 3, 8, 12 + 4 * k), weight, bias), sizes={"B": 2, "N": 6 + 2 * k, "D": 5, "C": 3, "P": 4}
    )
    weight, bias = numbers(seed, 7, 1, 3, 3, scale=0.2), numbers(seed + 1, 7)
    yield Case((numbers(seed, 4, 1, 6, 9), weight, bias), sizes={"B": 4, "N": 6, "D": 7, "C": 1, "P": 3})


def show_filters(thing):
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so its filters cannot be seen.")
        return
    from ..visualize import show_filters

    layer = trained()[0].vision_tower.vision_model.embeddings.patch_embedding
    tokens = thing(torch.zeros(1, 3, 64, 64), layer.weight, layer.bias)
    print(f"  a grey picture gives {list(tokens.shape)}, all tokens alike; the first 24 filters of the trained model:")
    show_filters(layer.weight.detach()[:24], columns=12)


EMBED = Task(
    id="02.3",
    title="one matrix for all patches",
    points=3,
    minutes=10,
    level="medium",
    reference=embed_patches,
    cases=embed_cases,
    tolerance=1e-4,
    see='chapter 02, "The same, as a convolution"; the hints of this task',
    reward=show_filters,
    mistakes=[
        Mistake("no bias", "your numbers are those you get without the bias",
                lambda x, weight, bias: embed_patches(x, weight, None)),
        Mistake("features before tokens", "D comes before N: a convolution's result still has to be turned",
                lambda x, weight, bias: embed_patches(x, weight, bias).transpose(1, 2)),
        Mistake("reshaped instead of transposed", "your numbers are right and lie in the wrong places: `reshape` moves "
                "none", lambda x, weight, bias: embed_patches(x, weight, bias).transpose(1, 2).reshape(
                    x.shape[0], -1, len(bias))),
        Mistake("overlapping patches", "your patches overlap: the step from one to the next is one pixel",
                lambda x, weight, bias: F.conv2d(x, weight, bias).flatten(2).transpose(1, 2)),
        Mistake("not flattened", "rows and columns of patches are still two axes",
                lambda x, weight, bias: F.conv2d(x, weight, bias, stride=weight.shape[-1])),
        Mistake("columns first", "your tokens run down the columns: they count row by row, like reading",
                lambda x, weight, bias: F.conv2d(x, weight, bias, stride=weight.shape[-1]).permute(0, 3, 2, 1).flatten(
                    1, 2)),
        Mistake("channels last", "pixels and weights are paired in different orders: in one the colours of a pixel lie "
                "side by side, in the other channel by channel",
                lambda x, weight, bias: F.linear(other_order((0, 2, 4, 3, 5, 1))(x, weight.shape[-1]),
                                                 weight.flatten(1), bias)),
        Mistake("patches turned", "rows and columns of each patch are exchanged against the weights",
                lambda x, weight, bias: embed_patches(x, weight.transpose(2, 3), bias)),
        Mistake("reshaped only", "the picture is cut like a tape, not into patches",
                lambda x, weight, bias: x.reshape(x.shape[0], -1, weight[0].numel()) @ weight.flatten(1).T + bias),
        Mistake("weights reshaped", "the weights are cut into a matrix of the right shape without moving a number",
                lambda x, weight, bias: cut_patches(x, weight.shape[-1]) @ weight.reshape(-1, len(bias)) + bias),
    ],
)  # fmt: skip

# --- 02.4 --------------------------------------------------------------------------------------------------------


class Variant(SiglipVisionEmbeddings):
    """The package's embeddings with a step done differently."""

    def tokens(self, x):
        return self.patch_embedding(x).flatten(2).transpose(1, 2)

    def positions(self):
        return self.position_embedding.weight

    def join(self, tokens, positions):
        return tokens + positions

    def forward(self, x):
        return self.join(self.tokens(x), self.positions())


class NoPositions(Variant):
    def join(self, tokens, positions):
        return tokens


class Multiplied(Variant):
    def join(self, tokens, positions):
        return tokens * positions


class Concatenated(Variant):
    def join(self, tokens, positions):
        return torch.cat([tokens, positions.expand_as(tokens)], dim=-1)


class OnePosition(Variant):
    def positions(self):
        return self.position_embedding.weight[0]


class Backwards(Variant):
    def positions(self):
        return self.position_embedding.weight.flip(0)


class Shifted(Variant):
    def positions(self):
        return self.position_embedding.weight.roll(-1, 0)


class Reshaped(Variant):
    def tokens(self, x):
        tokens = self.patch_embedding(x)
        return tokens.reshape(len(x), -1, tokens.shape[1])


class ColumnsFirst(Variant):
    def tokens(self, x):
        return self.patch_embedding(x).permute(0, 3, 2, 1).flatten(1, 2)


class NotFlattened(Variant):
    def forward(self, x):
        return self.patch_embedding(x)


class FeaturesFirst(Variant):
    def forward(self, x):
        return super().forward(x).transpose(1, 2)


class NoBias(Variant):
    def tokens(self, x):
        weight = self.patch_embedding.weight
        return F.conv2d(x, weight, stride=weight.shape[-1]).flatten(2).transpose(1, 2)


class FirstRowOnly(Variant):
    def join(self, tokens, positions):
        return torch.cat([tokens[:1] + positions, tokens[1:]])


def module_cases(seed):
    k = larger(seed)
    for batch, width, side, size in ((2 + 5 * k, 6 + 2 * k, 12, 4), (3, 10, 10, 5)):
        config = SiglipVisionConfig(hidden_size=width, num_attention_heads=2, image_size=side, patch_size=size,
                                    intermediate_size=8, num_hidden_layers=1)  # fmt: skip
        sizes = {"B": batch, "N": (side // size) ** 2, "D": width}
        yield Case((numbers(seed, batch, 3, side, side),), (config,), sizes)


def show_positions(kind):
    """How alike the learned positions are, through the learner's class."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so its positions cannot be seen.")
        return
    from ..swap import swap
    from ..visualize import show_similarity_maps

    model = trained()[0]
    with swap(model, SiglipVisionEmbeddings=kind), torch.no_grad():
        embeddings = model.vision_tower.vision_model.embeddings
        black, grid = torch.zeros(1, 3, 64, 64), 8
        vectors = embeddings(black)[0] - embeddings.patch_embedding(black).flatten(2).transpose(1, 2)[0]
    print("What your class adds for each of 8 x 8 places, compared with what it adds for the place that is marked:")
    show_similarity_maps(vectors, (grid, grid), tokens=[9, 28, 62])


MODULE = Task(
    id="02.4",
    title="SiglipVisionEmbeddings",
    points=4,
    minutes=12,
    level="medium",
    reference=SiglipVisionEmbeddings,
    cases=module_cases,
    tolerance=1e-4,
    see='chapter 02, "The class"; the hints of this task',
    reward=show_positions,
    mistakes=[
        Mistake("positions forgotten", "your numbers are those you get without the positions: two patches that look "
                "alike become the same token, wherever they are", NoPositions),
        Mistake("positions multiplied", "the positions are multiplied instead of added", Multiplied),
        Mistake("positions appended", "the positions are put beside the tokens: D has doubled", Concatenated),
        Mistake("one position for all", "every token gets the vector of place 0", OnePosition),
        Mistake("positions backwards", "the positions count from the end", Backwards),
        Mistake("positions off by one", "token 0 gets the position of place 1: places count from 0", Shifted),
        Mistake("reshaped instead of transposed", "the features are right and lie in the wrong tokens: `reshape` and "
                "`view` move no number", Reshaped),
        Mistake("columns first", "your tokens run down the columns: they count row by row, like reading", ColumnsFirst),
        Mistake("not flattened", "your result is still a small picture of vectors", NotFlattened),
        Mistake("features before tokens", "D comes before N in your result", FeaturesFirst),
        Mistake("no bias", "your numbers are those you get without the convolution's bias", NoBias),
        Mistake("first picture only", "only the first picture of the batch gets positions", FirstRowOnly),
    ],
)  # fmt: skip

# --- 02.5 --------------------------------------------------------------------------------------------------------


class Listing(SiglipVisionEmbeddings):
    """The class that is printed in the exercise, with its three faults."""

    columns_first = True
    one_position = True
    no_bias = True

    def forward(self, x):
        weight, bias = self.patch_embedding.weight, None if self.no_bias else self.patch_embedding.bias
        grid = F.conv2d(x, weight, bias, stride=weight.shape[-1])
        tokens = grid.permute(0, 3, 2, 1).flatten(1, 2) if self.columns_first else grid.flatten(2).transpose(1, 2)
        return tokens + (self.position_embedding.weight[:1] if self.one_position else self.position_embedding.weight)


FAULTS = {  # what can be observed of each, and its name
    "columns_first": ("token 1 is still not the patch to the right of token 0", "left: the order"),
    "one_position": ("two equal patches still become equal tokens, wherever they are", "left: the places"),
    "no_bias": ("one of the three trained tensors has no influence", "left: a tensor"),
}


BUGS = Task(
    id="02.5",
    title="find the three faults",
    points=3,
    minutes=10,
    level="medium",
    reference=SiglipVisionEmbeddings,
    cases=module_cases,
    tolerance=1e-4,
    see="the hints of this task: which picture would show each fault?",
    reward=lambda kind: print("  a picture with one white patch at a time would have shown two of the three"),
    mistakes=[
        *faults_left(FAULTS, lambda some: type("Left", (Listing,), {fault: fault in some for fault in FAULTS})),
        Mistake("positions forgotten", "the positions were there, if badly, and are gone", NoPositions),
        Mistake("reshaped instead of transposed", "the features lie in the wrong tokens: `reshape` moves no number",
                Reshaped),
        Mistake("features before tokens", "D comes before N in your result", FeaturesFirst),
    ],
)  # fmt: skip

TASKS = [BOX, CUT, EMBED, MODULE, BUGS, swap_task("02.6", ("SiglipVisionEmbeddings",), see="the hints of this task")]
