"""Chapter 02: from pixels to tokens."""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from .. import ASSETS
from ..modeling_siglip import SiglipVisionConfig, SiglipVisionEmbeddings
from .exposing import exposing_task, matching_task
from .tasks import Case, Finding, Found, Mistake, Prediction, Task, larger, numbers
from .watching import draw_kept, picture, trained, words_kept

# --- 02.1 --------------------------------------------------------------------------------------------------------


def patch_box(index, width, patch_size):
    row, column = divmod(index, width // patch_size)
    return (row * patch_size, column * patch_size, (row + 1) * patch_size, (column + 1) * patch_size)


def box_cases(seed):
    for index, width, patch_size in (
        (0, 24, 8),
        (1, 24, 8),
        (5, 24, 8),
        (37, 64, 8),
        (7, 224, 14),
        (100 + seed, 224, 14),
    ):
        note = f"token {index}, picture {width} pixels wide, patches of {patch_size}"
        yield Case((index, width, patch_size), note=note)


def show_box(thing):
    for index in (0, 7, 8, 37, 63):
        box = thing(index, 64, 8)
        print(f"  token {index:2} of a 64 x 64 picture: y {box[0]:2} to {box[2]:2}, x {box[1]:2} to {box[3]:2}")


BOX = Task(
    id="02.1",
    importance="core",
    title="which patch is token 37?",
    points=1,
    minutes=5,
    level="easy",
    reference=patch_box,
    cases=box_cases,
    gradients=False,
    see='chapter 02, "Cut, without a loop"; the hints of this task',
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
            "row is a fraction",
            "your row is a fraction: `//` divides without a rest, `/` does not",
            lambda index, width, size: (
                index / (width // size) * size,
                index % (width // size) * size,
                (index / (width // size) + 1) * size,
                (index % (width // size) + 1) * size,
            ),
        ),
        Mistake(
            "row times the width",
            "the row is multiplied by the width of the picture: one row of patches is as high as one patch",
            lambda index, width, size: (
                index // (width // size) * width,
                index % (width // size) * size,
                index // (width // size) * width + size,
                (index % (width // size) + 1) * size,
            ),
        ),
        Mistake(
            "a fixed number in each row",
            "right for eight patches in a row: how many there are depends on the picture's width and on the patch",
            lambda index, width, size: patch_box(index, 8 * size, size),
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


def width_first(x, size):
    """Height and width taken for each other."""
    B, C, H, W = x.shape
    six = x.reshape(B, C, W // size, size, H // size, size).permute(0, 2, 4, 1, 3, 5)
    return six.reshape(B, H // size * W // size, C * size * size)


def scattered(x, size):
    """The sides cut as (y, rows) and (x, columns)."""
    B, C, H, W = x.shape
    six = x.reshape(B, C, size, H // size, size, W // size).permute(0, 2, 4, 1, 3, 5)
    return six.reshape(B, H // size * W // size, C * size * size)


def unfolded_and_reshaped(x, size):
    patches = F.unfold(x, size, stride=size)
    return patches.reshape(len(x), -1, patches.shape[1])


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
    importance="core",
    from_memory=True,
    prediction=Prediction(
        "What is in the first row of `x.reshape(B, N, C * P * P)`, which has the right shape?",
        truth="red numbers of the first lines",
        tempting="the first patch",
        why="`reshape` moves no number: the first row is the first C * P * P numbers as they lie in memory, and there "
        "the red channel comes first, line after line over the whole width.",
        options=("the first patch", "red numbers of the first lines", "the first pixel of each patch"),
    ),
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
        Mistake("y before columns", "the third axis of your six is y within the patch; the columns of patches come "
                "there, so that a patch's number is in front", other_order((0, 2, 3, 1, 4, 5))),
        Mistake("height and width swapped", "height and width are taken for each other when the sides are cut: x is "
                "[B, C, height, width]", width_first),
        Mistake("sides cut the wrong way round", "each side is cut as (place in the patch, patch) instead of (patch, "
                "place in the patch): a patch is gathered from pixels that lie far apart", scattered),
        Mistake("reshaped instead of transposed", "F.unfold gives [B, C * P * P, N]: its last two axes are to be "
                "exchanged, and `reshape` moves no number", unfolded_and_reshaped),
        Mistake("patches overlap", "there are more patches than fit side by side: yours overlap, as with a step of one "
                "pixel", lambda x, size: F.unfold(x, size).transpose(1, 2)),
        Mistake("last patches left out", "the last row and the last column of patches are missing: a range without its "
                "end stops one patch early", lambda x, size: cut_patches(x[:, :, :-size, :-size], size)),
        Mistake("first picture only", "only the first picture of the batch is cut",
                lambda x, size: cut_patches(x[:1], size)),
        Mistake("patches last", "features and patches are exchanged: that is what F.unfold returns",
                lambda x, size: F.unfold(x, size, stride=size)),
        Mistake("not merged", "the axes are in the right order and not merged yet",
                lambda x, size: cut_patches(x, size).unflatten(-1, (x.shape[1], size, size))),
        Mistake("not merged", "rows and columns of patches are still two axes",
                lambda x, size: cut_patches(x, size).unflatten(1, (x.shape[2] // size, x.shape[3] // size))),
    ],
)  # fmt: skip

# --- 02.3 --------------------------------------------------------------------------------------------------------


def filters(P, half=None):
    """Four filters [4, 3, P, P] for an even P: brightness, right minus left, bottom minus top, red minus blue."""
    half = P // 2 if half is None else half
    weight = torch.zeros(4, 3, P, P)
    weight[0] = 1 / (3 * P * P)
    weight[1, :, :, half:] = 2 / (3 * P * P)
    weight[1, :, :, :half] = -2 / (3 * P * P)
    weight[2, :, half:] = 2 / (3 * P * P)
    weight[2, :, :half] = -2 / (3 * P * P)
    weight[3, 0], weight[3, 2] = 1 / (P * P), -1 / (P * P)
    return weight


def see_through(solution, x, P):
    """What the filters see in each patch, [B, N, 4]."""
    with torch.enable_grad():  # a filter may be found as the gradient of what it measures
        weight = solution(P)
    if not isinstance(weight, torch.Tensor):
        raise Found("type", f"the filters are a {type(weight).__name__}, expected a tensor [4, 3, {P}, {P}]")
    if list(weight.shape) != [4, 3, P, P]:
        means = "four filters, each with a number for every channel, row and column of a patch"
        raise Found("shape", f"the filters are {list(weight.shape)}, expected [4, 3, P={P}, P={P}]", means)
    return F.conv2d(x, weight.detach().to(torch.float32), stride=P).flatten(2).transpose(1, 2)


def filter_cases(seed):
    k = larger(seed)
    for size, batch in ((4 + 2 * k, 2), (2, 3)):
        sizes = {"B": batch, "P": size, "N": 6}
        yield Case((numbers(seed, batch, 3, 2 * size, 3 * size, shift=0.3), size), sizes=sizes, note=f"P = {size}")


def changed(change):
    """The filters with `change(weight)` applied, which works on a copy."""

    def imitation(P):
        weight = filters(P)
        return change(weight)

    return imitation


def rows_of(*order):
    return changed(lambda weight: weight[list(order)])


def signs(*factors):
    return changed(lambda weight: weight * torch.tensor(factors).reshape(4, 1, 1, 1))


def one_channel(weight):
    weight[:3] = 0 * weight[:3] + torch.stack([3 * weight[:3, 0], *[0 * weight[:3, 0]] * 2], dim=1)
    return weight


def red_green(weight):
    weight[3] = weight[3, [0, 2, 1]]
    return weight


def luminance(weight):
    weight[0] *= 3 * torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return weight


def one_sided(*rows, sign=1):
    """These filters without what they subtract (sign 1), or without what they subtract it from (sign -1)."""

    def change(weight):
        weight[list(rows)] = sign * (sign * weight[list(rows)]).clamp(min=0)
        return weight

    return changed(change)


LOOK_AT = {
    "brightness": "all its numbers are to be alike: a mean asks each number for the same share",
    "red minus blue": "which channels have a plus, which a minus, and over how many numbers runs each mean?",
}


def which_feature(case, got, want) -> Finding | None:
    """The features that are right, and the first that is not."""
    names = ("brightness", "right minus left", "bottom minus top", "red minus blue")
    good = [bool(torch.allclose(got[..., i], want[..., i], atol=1e-4)) for i in range(4)]
    if all(good) or not any(good):
        return None
    name = names[good.index(False)]
    right = ", ".join(name for name, fine in zip(names, good) if fine)
    ratio = (got[..., good.index(False)] / want[..., good.index(False)]).median()
    means = (
        f"its numbers are {float(ratio):.3g} times what they should be: a mean is a sum divided by how many are added"
        if torch.allclose(got[..., good.index(False)], ratio * want[..., good.index(False)], atol=1e-4)
        else LOOK_AT.get(name, "draw the filter as a square of plus and minus signs: where do they meet?")
    )
    return Finding("one filter", f"right: {right}; the filter {name!r} is not", means)


def show_filtered(thing):
    """A photograph through the learner's filters: a map for each."""
    from ..visualize import show_images

    with Image.open(ASSETS / "coffee.jpg") as photograph:
        image = photograph.convert("RGB").resize((96, 96))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1  # [1, 3, 96, 96]
    maps = F.conv2d(pixels, thing(4).detach(), stride=4)[0]  # [4, 24, 24]
    maps = [(one - one.min()) / (one.max() - one.min()) for one in maps]
    print("What your filters see in the patches of a photograph, from least (black) to most (white):")
    for ax in show_images(
        [image, *maps], titles=["picture", "brightness", "right - left", "bottom - top", "red - blue"]
    ):
        ax.set(xticks=[], yticks=[], xlabel="", ylabel="")


FILTERS = Task(
    id="02.3",
    title="four filters, set by hand",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    reference=filters,
    cases=filter_cases,
    use=see_through,
    gradients=False,
    tolerance=1e-4,
    see='chapter 02, "By hand"; the hints of this task',
    reward=show_filtered,
    symptoms=[which_feature],
    mistakes=[
        Mistake("left minus right", "the filter for the edge between left and right has its sign turned: where the "
                "right half is brighter, the number is to be positive", signs(1, -1, 1, 1)),
        Mistake("top minus bottom", "the filter for the edge between top and bottom has its sign turned: rows count "
                "from the top", signs(1, 1, -1, 1)),
        Mistake("both edges turned", "both edges have their sign turned", signs(1, -1, -1, 1)),
        Mistake("blue minus red", "channel 0 is red and channel 2 is blue", signs(1, 1, 1, -1)),
        Mistake("rows and columns exchanged", "the second filter compares top and bottom, the third left and right: "
                "the axes of a filter are channel, row, column", rows_of(0, 2, 1, 3)),
        Mistake("sums", "your numbers are sums, and means are asked for: they would grow with the patch",
                [lambda P: filters(P) * 3 * P * P, lambda P: filters(P) * P * P]),
        Mistake("one channel", "your first three filters look at the red channel alone", changed(one_channel)),
        Mistake("luminance", "the first filter weighs the colours as the eye does: the mean of all numbers is asked "
                             "for",
                changed(luminance)),
        Mistake("one side only", "one of your differences has only one of its two sides: two means, the second with a "
                "minus", [one_sided(*rows, sign=sign) for rows in ((1,), (2,), (3,), (1, 2), (1, 2, 3))
                          for sign in (1, -1)]),
        Mistake("half is fixed", "the two halves meet at a fixed place: half of a patch is P // 2",
                [lambda P: filters(P, 1), lambda P: filters(P, 2), lambda P: filters(P, 4), lambda P: filters(P, 7)]),
        Mistake("red minus green", "channel 1 is green, blue is channel 2", changed(red_green)),
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


class PositionOfThePicture(Variant):
    def join(self, tokens, positions):
        return tokens + positions[: len(tokens), None]


class CutOff(Variant):
    def tokens(self, x):
        return super().tokens(x).relu()


class PictureTurned(Variant):
    def tokens(self, x):
        return super().tokens(x.transpose(2, 3))


class Overlapping(Variant):
    def tokens(self, x):
        return F.conv2d(x, self.patch_embedding.weight, self.patch_embedding.bias).flatten(2).transpose(1, 2)


class FirstRowOnly(Variant):
    def join(self, tokens, positions):
        return torch.cat([tokens[:1] + positions, tokens[1:]])


def module_cases(seed):
    k = larger(seed)
    for batch, channels, width, side, size in ((2 + 5 * k, 3, 6 + 2 * k, 12, 4), (3, 1, 10, 10, 5)):
        config = SiglipVisionConfig(hidden_size=width, num_attention_heads=2, image_size=side, patch_size=size,
                                    intermediate_size=8, num_hidden_layers=1, num_channels=channels)  # fmt: skip
        sizes = {"B": batch, "N": (side // size) ** 2, "D": width}
        note = "" if channels == 3 else "one channel"
        yield Case((numbers(seed, batch, channels, side, side),), (config,), sizes, note)


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
    importance="core",
    from_memory=True,
    title="SiglipVisionEmbeddings",
    points=4,
    minutes=8,
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
        Mistake("position of the picture", "all tokens of a picture get the vector whose place is the picture's number "
                "in the batch: each place has a vector of its own, and all pictures get the same ones",
                PositionOfThePicture),
        Mistake("cut off", "nothing is below zero before the positions are added: no ReLU belongs here", CutOff),
        Mistake("picture on its side", "height and width of the picture are exchanged before the convolution",
                PictureTurned),
        Mistake("patches overlap", "there are more tokens than patches: the convolution goes on by one pixel instead "
                "of by a whole patch", Overlapping),
    ],
)  # fmt: skip

# --- 02.5 --------------------------------------------------------------------------------------------------------


def embed(x, weight, bias, positions):
    """x [B, C, height, width], weight [D, C, P, P], bias [D], positions [N, D] -> tokens [B, N, D]"""
    grid = F.conv2d(x, weight, bias, stride=weight.shape[-1])  # [B, D, rows, columns]
    return grid.flatten(2).transpose(1, 2) + positions


def columns_first(x, weight, bias, positions):
    grid = F.conv2d(x, weight, bias, stride=weight.shape[-1])
    return grid.permute(0, 3, 2, 1).flatten(1, 2) + positions


def one_position(x, weight, bias, positions):
    grid = F.conv2d(x, weight, bias, stride=weight.shape[-1])
    return grid.flatten(2).transpose(1, 2) + positions[:1]


def no_bias(x, weight, bias, positions):
    grid = F.conv2d(x, weight, stride=weight.shape[-1])
    return grid.flatten(2).transpose(1, 2) + positions


def reshaped(x, weight, bias, positions):
    grid = F.conv2d(x, weight, bias, stride=weight.shape[-1])
    return grid.reshape(len(x), -1, len(bias)) + positions


def filters_turned(x, weight, bias, positions):
    grid = F.conv2d(x, weight.transpose(2, 3), bias, stride=weight.shape[-1])
    return grid.flatten(2).transpose(1, 2) + positions


WRONG_VERSIONS = {
    version.__name__: version for version in (columns_first, one_position, no_bias, reshaped, filters_turned)
}


def exposing_embeddings():
    one = torch.ones(1)
    square, wide, edge = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 2, 2)
    square[0, 0, 0, 1] = wide[0, 0, 0, 0] = edge[0, 0, 0, 1] = 1  # patches of one pixel, but for the last
    pixel = torch.ones(1, 1, 1, 1)
    return {
        "columns_first": (square, pixel, 0 * one, torch.zeros(4, 1)),
        "one_position": (0 * square, pixel, 0 * one, torch.arange(4.0).reshape(4, 1)),
        "no_bias": (0 * square, pixel, one, torch.zeros(4, 1)),
        "reshaped": (wide, torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1), torch.zeros(2), torch.zeros(2, 2)),
        "filters_turned": (edge, edge, 0 * one, torch.zeros(1, 1)),
    }


def not_embeddable(x, weight, bias, positions) -> str | None:
    """Why this is no input for `embed`, or None."""
    for name, value, axes in (("x", x, 4), ("weight", weight, 4), ("bias", bias, 1), ("positions", positions, 2)):
        if not isinstance(value, torch.Tensor) or value.ndim != axes or not value.is_floating_point():
            seen = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            return f"{name} is {seen}, expected a float tensor with {axes} axes"
    D, C, P, Q = weight.shape
    if P != Q or x.shape[1] != C or x.shape[2] % P or x.shape[3] % P or 0 in (*x.shape, *weight.shape):
        return f"a picture {list(x.shape)} cannot be cut into patches for filters {list(weight.shape)}"
    N = x.shape[2] // P * (x.shape[3] // P)
    if len(bias) != D or list(positions.shape) != [N, D]:
        return f"bias {list(bias.shape)} and positions {list(positions.shape)}, expected [{D}] and [{N}, {D}]"
    return None


EXPOSE = exposing_task(
    id="02.5",
    title="five pictures that expose",
    points=3,
    minutes=15,
    level="medium",
    importance="deepen",
    right=embed,
    wrong=WRONG_VERSIONS,
    reference=exposing_embeddings,
    usable=not_embeddable,
    see='chapter 02, "The class"; the hints of this task',
    reward=lambda solution: print(
        "  largest of your pictures: "
        f"{max(inputs[0].shape[-1] * inputs[0].shape[-2] for inputs in solution().values())} pixels"
    ),
)

# --- 02.6 --------------------------------------------------------------------------------------------------------


class OnlyPatches(SiglipVisionEmbeddings):
    def forward(self, x):
        return self.patch_embedding(x).flatten(2).transpose(1, 2)


class PositionsReversed(SiglipVisionEmbeddings):
    def forward(self, x):
        return self.patch_embedding(x).flatten(2).transpose(1, 2) + self.position_embedding.weight.flip(0)


class TokensByColumns(SiglipVisionEmbeddings):
    def forward(self, x):
        return self.patch_embedding(x).permute(0, 3, 2, 1).flatten(1, 2) + self.position_embedding.weight


class Mirrored(SiglipVisionEmbeddings):
    def forward(self, x):
        return super().forward(x.flip(3))


class BlueFirst(SiglipVisionEmbeddings):
    def forward(self, x):
        return super().forward(x.flip(1))


CHANGES = {  # panel: (what was done, the part that does it)
    "A": ("the picture mirrored", Mirrored),
    "B": ("no positions", OnlyPatches),
    "C": ("red and blue exchanged", BlueFirst),
    "D": ("tokens column by column", TokensByColumns),
    "E": ("positions in reverse", PositionsReversed),
}


def show_changes() -> None:
    """Draw how much of each kind of word is left of 24 captions after each of five changes: panels A to E."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so nothing can be measured.")
        return
    print("Captions of 24 that are as before, and words that are kept:")
    draw_kept({panel: words_kept(SiglipVisionEmbeddings=part) for panel, (_, part) in CHANGES.items()})


DAMAGE = matching_task(
    id="02.6",
    parts="rows",
    title="what was done to the model",
    points=3,
    minutes=10,
    level="medium",
    importance="core",
    truth={panel: name for panel, (name, _) in CHANGES.items()},
    confusions={
        frozenset({"the picture mirrored", "tokens column by column"}): "one of them exchanges left and right and "
        "nothing else, so a caption that says above or below is still right",
        frozenset({"no positions", "positions in reverse"}): "positions in reverse still are positions: what lies side "
        "by side stays side by side. Which of the two leaves more?",
        frozenset({"red and blue exchanged", "no positions"}): "exchanged channels leave every place alone",
        frozenset({"tokens column by column", "positions in reverse"}): "a transposed picture is a picture the model "
        "could have seen: sizes and shapes stay. Which words would be wrong?",
        frozenset({"the picture mirrored", "positions in reverse"}): "a mirrored picture is a picture that the model "
        "could have been trained on",
    },
    see='chapter 02, "Break it"; the hints of this task',
    reward=lambda solution: print("  what a fault takes says what the part was for"),
)

TASKS = [BOX, CUT, FILTERS, MODULE, EXPOSE, DAMAGE]
