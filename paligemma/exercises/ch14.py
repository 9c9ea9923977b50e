"""Chapter 14: attention maps, rollout, and heads taken away."""

import functools
from contextlib import nullcontext

import torch

from ..attention_maps import ablate_head, answer_attention
from ..generation import generate
from ..world.scenes import draw, find, make_scene
from . import watching
from .exposing import matching_task
from .tasks import Case, Finding, Mistake, Prediction, Task, faults_left, larger, numbers

NO_MODEL = "The trained model is not in assets/tiny-paligemma, so it cannot speak."


def weights_like(seed: int, *shape: int) -> torch.Tensor:
    """Attention weights: positive, and their rows sum to 1."""
    return numbers(seed, *shape, scale=1.5).softmax(dim=-1)


def colour_questions(first: int, count: int):
    """(scene, thing, prompt): scenes with a question about a colour that has one answer."""
    asked, seed = [], first
    while len(asked) < count:
        scene = make_scene(seed)
        thing = scene.things[seed % len(scene.things)]
        if len(scene.things) > 1 and len(find(scene, thing.shape)) == 1:
            asked.append((scene, thing, f"answer en what colour is the {thing.shape}?"))
        seed += 1
    return asked


@functools.cache
def recorded(caption: bool = True):
    """A picture, a thing in it, and all attention of the trained model's answer about it."""
    scene, thing, prompt = colour_questions(7300, 1)[0]
    image = draw(scene, size=256)
    return image, thing, answer_attention(*watching.trained(), image, "caption en" if caption else prompt)


# --- 14.1 --------------------------------------------------------------------------------------------------------


def chosen_by(weights, position, grid):
    layers, H, L, _ = weights.shape
    return weights[:, :, position - 1, : grid * grid].reshape(layers, H, grid, grid)


def choosing(row=-1, whose="row", cut="first", turn=False, change=lambda x: x):
    """`chosen_by` with one step done differently."""

    def function(weights, position, grid):
        at = weights.shape[2] - 1 if row == "last" else position + row
        line = weights[:, :, at] if whose == "row" else weights[:, :, :, at]
        start = {"first": 0, "second": 1, "last": line.shape[-1] - grid * grid}[cut]
        line = line[..., start : start + grid * grid]
        square = change(line.unflatten(-1, (grid, grid)))
        return square.transpose(-1, -2) if turn else square

    return function


def choice_cases(seed):
    k = larger(seed)
    yield Case((weights_like(seed, 3, 2, 14, 14), 11, 3), sizes={"layers": 3, "H": 2, "L": 14, "grid": 3})
    yield Case(
        (weights_like(seed, 2, 5, 9 + k, 9 + k), 6, 2), sizes={"layers": 2, "H": 5, "L": 9 + k}, note="a grid of 2"
    )
    yield Case((weights_like(seed + 9, 2, 3, 13, 13), 12, 3), sizes={"H": 3, "L": 13, "grid": 3}, note="the last token")


def show_choice(thing):
    """The map of the layer that looks at the picture most, for one word of the trained model's caption."""
    from ..visualize import show_attention_over_image  # here: matplotlib is not needed for anything else

    if watching.trained() is None:
        print(NO_MODEL)
        return
    image, _, attention = recorded()
    token = min(1, len(attention.tokens) - 1)
    maps = thing(attention.decoder, int(attention.queries[token]) + 1, attention.grid)  # [layers, H, grid, grid]
    busiest = int(maps.sum(dim=(2, 3)).mean(dim=1).argmax())
    word = attention.tokens[token].replace("▁", " ").strip()
    print(f"  the model says: {attention.text}")
    print(f"  what it looked at, in layer {busiest}, when it chose “{word}”:")
    show_attention_over_image(image, maps[busiest].mean(dim=0), title=f"“{word}”")


CHOOSE = Task(
    id="14.1",
    title="what chose this token?",
    points=2,
    minutes=6,
    level="easy",
    importance="core",
    reference=chosen_by,
    cases=choice_cases,
    see='chapter 14, "By hand"; the hints of this task',
    reward=show_choice,
    mistakes=[
        Mistake("row of the token itself", "this is the row of the token itself: what it looks at chooses the token "
                "after it", choosing(row=0)),
        Mistake("one row too early", "this is the row two before the token: it chose the token before it",
                choosing(row=-2)),
        Mistake("last row", "this is the last row, whatever the position: it is the row of another token's choice",
                choosing(row="last")),
        Mistake("column instead of row", "these are the weights with which others look at the position: a row holds "
                "who looks, a column who is looked at", choosing(whose="column")),
        Mistake("column instead of row", "these are the weights with which others look at the token",
                choosing(row=0, whose="column")),
        Mistake("text instead of picture", "these are the last columns; the picture's places come first",
                choosing(cut="last")),
        Mistake("rows and columns swapped", "the grid is on its side: patches are numbered row by row, from the left",
                choosing(turn=True)),
        Mistake("divided by the sum", "the weights are divided by the picture's share: this task leaves them as they "
                "are", choosing(change=lambda x: x / x.sum(dim=(-2, -1), keepdim=True))),
        Mistake("divided by the largest", "the weights are divided by the largest one: this task leaves them as they "
                "are", choosing(change=lambda x: x / x.amax(dim=(-2, -1), keepdim=True))),
        Mistake("one row too late", "this is the row after the token: what it looks at chooses a token further on",
                choosing(row=1)),
        Mistake("heads averaged", "the heads are averaged: each has a map of its own here", [
            choosing(change=lambda x: x.mean(dim=1)), choosing(change=lambda x: x.mean(dim=1, keepdim=True))]),
        Mistake("one layer only", "only one layer comes back: all are asked for", [
            choosing(change=lambda x: x[-1]), choosing(change=lambda x: x[0])]),
        Mistake("one column further", "the columns begin at 1: the first patch stands in column 0",
                choosing(cut="second")),
    ],
)  # fmt: skip

# --- 14.2 --------------------------------------------------------------------------------------------------------


def share_inside(weights, box):
    """Patch by patch."""
    grid, inside = len(weights), 0.0
    for row in range(grid):
        for column in range(grid):
            height = min(box[2] * grid, row + 1) - max(box[0] * grid, row)
            width = min(box[3] * grid, column + 1) - max(box[1] * grid, column)
            inside += max(height, 0.0) * max(width, 0.0) * float(weights[row, column])
    return inside / float(weights.sum())


def covered_parts(low, high, grid):
    edges = torch.arange(grid + 1) / grid
    return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * grid


def whole_patches(first, last):
    """Patches count wholly or not at all; `first` and `last` say which edges are taken."""

    def covered(low, high, grid):
        place = torch.arange(grid)
        return ((place >= first(low * grid)) & (place < last(high * grid))).float()

    return covered


def touched(low, high, grid):
    return (covered_parts(low, high, grid) > 0).float()


def centres(low, high, grid):
    middle = (torch.arange(grid) + 0.5) / grid
    return ((middle >= low) & (middle <= high)).float()


def unclamped(low, high, grid):
    edges = torch.arange(grid + 1) / grid
    return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)) * grid


def everything(low, high, grid):
    return torch.ones(grid)


def unscaled(low, high, grid):
    return covered_parts(low, high, grid) / grid


def sharing(covered=covered_parts, turned=False, finish=lambda inside, all_, area: inside / all_, across=None,
            combine=lambda rows, columns: rows * columns):  # fmt: skip
    """`share_inside` with one step done differently; `across` is another `covered` for the columns."""

    def function(weights, box):
        y1, x1, y2, x2 = (box[1], box[0], box[3], box[2]) if turned else box
        rows, columns = covered(y1, y2, len(weights)), (across or covered)(x1, x2, len(weights))
        mask = combine(rows[:, None], columns[None, :])
        return float(finish((weights * mask).sum(), weights.sum(), mask.mean()))

    return function


def mean_inside(weights, box):
    mask = covered_parts(box[0], box[2], len(weights))[:, None] * covered_parts(box[1], box[3], len(weights))
    return float((weights * mask).sum() / mask.sum())


def share_cases(seed):
    k = larger(seed)
    for grid, box, note in (
        (4, (0.25, 0.0, 0.75, 0.5), "the box ends at edges of patches"),
        (5 + k, (0.13, 0.27, 0.61, 0.94), "the box cuts through patches"),
        (8, (0.31, 0.55, 0.47, 0.97), "a wide box"),
        (4, (0.3, 0.55, 0.45, 0.7), "a box inside one patch"),
        (3, (0.0, 0.0, 1.0, 1.0), "the whole picture"),
    ):
        weights = numbers(seed + grid, grid, grid, scale=1.2).exp()
        yield Case((weights / weights.sum() * 0.6, box), sizes={"grid": grid}, note=note)


def show_share(thing):
    """The head of the trained model that looks at the thing most, against the box's share of the area."""
    even = torch.full((8, 8), 0.01)
    print(f"  even attention, a box of 18 % of the area: {thing(even, (0.0, 0.25, 0.5, 0.61)):.2f}")
    if watching.trained() is None:
        print(NO_MODEL)
        return
    _, asked, attention = recorded(caption=False)
    layers, H = attention.decoder.shape[:2]
    shares = [(thing(attention.to_image(i, h, 0), asked.box), i, h) for i in range(layers) for h in range(H)]
    share, layer, head = max(shares)
    y1, x1, y2, x2 = asked.box
    print(f"  the model is asked for the colour of the {asked.shape} and says {attention.text}")
    print(f"  layer {layer}, head {head}: {share:.2f} of its attention to the picture lies inside the box")
    print(f"  the box's share of the area: {(y2 - y1) * (x2 - x1):.2f}")


SHARE = Task(
    id="14.2",
    title="the share inside a box",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    from_memory=True,
    prediction=Prediction(
        "Even attention, and a box of a tenth of the picture: the share inside is",
        truth=0.1,
        tempting=0.5,
        why="The share of the area. Whatever a head gives to a box is to be compared with that, and not with one half.",
    ),
    reference=share_inside,
    cases=share_cases,
    gradients=False,
    see='chapter 14, "The share inside a box"; the hints of this task',
    reward=show_share,
    mistakes=[
        Mistake("not divided by the picture's sum", "the result is of all attention, text included: divide by what the "
                "picture gets", sharing(finish=lambda inside, all_, area: inside)),
        Mistake("y and x swapped", "the box lies on its side: y1 x1 y2 x2, and y counts the rows",
                sharing(turned=True)),
        Mistake("rounded to patches", "the sides of the box are rounded to edges of patches: a patch counts by the "
                "part of it that is inside", sharing(whole_patches(round, round))),
        Mistake("rounded to patches", "the sides of the box are cut off to edges of patches: a patch counts by the "
                "part of it that is inside", sharing(whole_patches(int, int))),
        Mistake("rounded to patches", "each patch that the box touches counts wholly: a patch counts by the part of it "
                "that is inside", sharing(touched)),
        Mistake("rounded to patches", "a patch counts wholly when its middle is inside: it counts by the part of it "
                "that is inside", sharing(centres)),
        Mistake("negative overlap", "patches beyond the box count with negative heights and widths: an overlap is at "
                "least 0", sharing(unclamped)),
        Mistake("overlap in parts of the picture", "the overlap of a patch is measured in parts of the whole picture: "
                "a patch wholly inside is to count as 1", sharing(unscaled)),
        Mistake("divided by the area", "the share is divided by the box's share of the area: compare the two, and keep "
                "them apart", sharing(finish=lambda inside, all_, area: inside / all_ / area)),
        Mistake("inside against outside", "what is inside is divided by what is outside",
                sharing(finish=lambda inside, all_, area: inside / (all_ - inside).clamp(min=1e-9))),
        Mistake("outside", "this is the share outside the box",
                sharing(finish=lambda inside, all_, area: 1 - inside / all_)),
        Mistake("mean inside", "what is inside is divided by how many patches are inside, which is a mean: divide by "
                "what "
                "the picture gets", mean_inside),
        Mistake("overlap in parts of the picture", "one of the two overlaps is measured in parts of the whole picture: "
                "a patch wholly inside is to count as 1", [
                    sharing(across=unscaled), sharing(unscaled, across=covered_parts)]),
        Mistake("weights not used", "this is the box's share of the area: the weights are not used",
                sharing(finish=lambda inside, all_, area: area)),
        Mistake("overlaps added", "the overlaps of row and column are added: a patch is inside as far as both are, "
                "which "
                "is a product", [sharing(combine=lambda rows, columns: (rows + columns) / 2),
                                 sharing(combine=lambda rows, columns: rows + columns)]),
        Mistake("one direction only", "only the rows are looked at, and the box has a left and a right side, too",
                sharing(across=everything)),
        Mistake("one direction only", "only the columns are looked at, and the box has a top and a bottom, too",
                sharing(everything, across=covered_parts)),
    ],
)  # fmt: skip

# --- 14.3 --------------------------------------------------------------------------------------------------------


def rollout(attention):
    mixed = [0.5 * layer + 0.5 * torch.eye(layer.shape[-1]) for layer in attention.mean(dim=1)]
    flow = mixed[0]
    for matrix in mixed[1:]:
        flow = matrix @ flow
    return flow


def rolling(heads=lambda x: x.mean(dim=1), residual=lambda a, eye: 0.5 * a + 0.5 * eye,
            step=lambda a, flow: a @ flow):  # fmt: skip
    """`rollout` with one step done differently."""

    def function(attention):
        eye = torch.eye(attention.shape[-1])
        flow = eye
        for weights in heads(attention):
            flow = step(residual(weights, eye), flow)
        return flow

    return function


def rollout_cases(seed):
    k = larger(seed)
    yield Case((weights_like(seed, 3, 2, 5, 5),), sizes={"layers": 3, "H": 2, "L": 5})
    yield Case((weights_like(seed + 9, 4, 3 + k, 6 + k, 6 + k),), sizes={"layers": 4, "H": 3 + k, "L": 6 + k})
    yield Case((weights_like(seed + 18, 1, 4, 7, 7),), sizes={"H": 4, "L": 7}, note="one layer")


def rows_that_do_not_sum(case, got, want):
    if not isinstance(got, torch.Tensor) or got.shape != want.shape:
        return None
    sums = got.float().sum(dim=-1)
    if torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return None
    return Finding(
        "rows do not sum to 1",
        f"the rows sum to {float(sums.min()):.3g} to {float(sums.max()):.3g}",
        "each token has gathered all that it holds from somewhere: every factor has rows that sum to 1, and so has "
        "their product",
    )


def show_rollout(thing):
    """From which patches one word of the trained model's caption has gathered, through all layers of the decoder."""
    from ..visualize import show_attention_over_image  # here: matplotlib is not needed for anything else

    if watching.trained() is None:
        print(NO_MODEL)
        return
    image, _, attention = recorded()
    token = min(1, len(attention.tokens) - 1)
    flow, place = thing(attention.decoder), int(attention.queries[token])
    word = attention.tokens[token].replace("▁", " ").strip()
    gathered = flow[place, : attention.grid**2]
    share = float(gathered.sum())
    print(f"  the model says: {attention.text}")
    print(f"  “{word}” was chosen from what comes to {share:.2f} from the picture and to {1 - share:.2f} from the text")
    show_attention_over_image(image, gathered.view(attention.grid, attention.grid), title=f"rollout for “{word}”")


ROLL = Task(
    id="14.3",
    title="rollout",
    points=3,
    minutes=12,
    level="medium",
    importance="deepen",
    from_memory=True,
    reference=rollout,
    cases=rollout_cases,
    gradients=False,  # dividing by the rows' sums, which are known, has another gradient and is as right
    see='chapter 14, "Rollout"; the hints of this task',
    reward=show_rollout,
    symptoms=[rows_that_do_not_sum],
    mistakes=[
        Mistake("residual forgotten", "your numbers are those without the residual: half of what a token holds is "
                "what it held before the layer", rolling(residual=lambda a, eye: a)),
        Mistake("not normalised", "attention and identity are added and not halved: rows sum to 2 for every layer",
                rolling(residual=lambda a, eye: a + eye)),
        Mistake("not normalised", "attention is added in full, the identity by half",
                rolling(residual=lambda a, eye: a + 0.5 * eye)),
        Mistake("not normalised", "the identity is added in full, attention by half",
                rolling(residual=lambda a, eye: 0.5 * a + eye)),
        Mistake("multiplied in the wrong order", "the layers are multiplied in the other order: the row of a token in "
                "the last layer must meet what the layer before has made of the tokens that it looks at",
                rolling(step=lambda a, flow: flow @ a)),
        Mistake("max instead of mean", "the largest head is taken at each place: the heads are to be averaged",
                rolling(lambda x: x.amax(dim=1))),
        Mistake("max instead of mean", "the smallest head is taken at each place: the heads are to be averaged",
                rolling(lambda x: x.amin(dim=1))),
        Mistake("heads summed", "the heads are added and not averaged", rolling(lambda x: x.sum(dim=1))),
        Mistake("first head only", "only the first head counts", rolling(lambda x: x[:, 0])),
        Mistake("layers and heads swapped", "the layers are averaged and the heads multiplied",
                rolling(lambda x: x.mean(dim=0))),
        Mistake("multiplied number by number", "the matrices are multiplied entry by entry: a token gathers from all "
                "that it looks at, which is a matrix product",
                lambda x: torch.stack([0.5 * a + 0.5 * torch.eye(a.shape[-1]) for a in x.mean(1)]).prod(0)),
        Mistake("layers averaged", "the layers are averaged: what flows through one layer after another is multiplied",
                lambda x: 0.5 * x.mean((0, 1)) + 0.5 * torch.eye(x.shape[-1])),
        Mistake("last layer only", "only the last layer counts",
                lambda x: 0.5 * x[-1].mean(0) + 0.5 * torch.eye(x.shape[-1])),
        Mistake("residual once", "the identity is added once, at the end: every layer has a residual",
                lambda x: 0.5 * rolling(residual=lambda a, eye: a)(x) + 0.5 * torch.eye(x.shape[-1])),
        Mistake("transposed", "columns and rows are swapped: row i is to say where token i has gathered from",
                lambda x: rollout(x).T),
        Mistake("multiplied number by number", "the matrices are multiplied entry by entry: a token gathers from all "
                "that it looks at, which is a matrix product", rolling(step=lambda a, flow: a * flow)),
        Mistake("a layer left out", "the first layer is left out: what tokens gathered there is missing",
                [rolling(lambda x: x.mean(dim=1)[1:]), lambda x: rollout(x[1:])]),
        Mistake("a layer left out", "the last layer is left out", [rolling(lambda x: x.mean(dim=1)[:-1])]),
    ],
)  # fmt: skip

# --- 14.4 --------------------------------------------------------------------------------------------------------

FAULTS = {  # what can be observed of each, and its name
    "row": ("the map is of the row of the token itself, which chooses the token after it", "row of the token itself"),
    "turned": ("the map lies on its side: the patches are numbered row by row", "rows and columns swapped"),
    "scale": (
        "the map's largest value is not 1: it is scaled by a token of the text, and looks pale",
        "scaled with the text",
    ),
}


def viewer_map(decoder, token_type_ids, layer, t, grid, size, faults=()):
    answer = token_type_ids.nonzero().flatten()
    row = decoder[layer].mean(dim=0)[int(answer[t]) - ("row" not in faults)]
    if "scale" not in faults:
        row = row[: grid * grid]
    weights = (row / row.max())[: grid * grid].view(grid, grid)
    weights = weights.T if "turned" in faults else weights
    return weights.repeat_interleave(size // grid, 0).repeat_interleave(size // grid, 1)


def viewer_cases(seed):
    k = larger(seed)
    for layers, H, grid, prompt, answer, layer, t, size in ((3, 2, 3, 3, 4 + k, 1, 2, 12), (2, 4, 4, 4, 3, 0, 0, 16)):
        L = grid * grid + prompt + answer
        scores = numbers(seed + L, layers, H, L, L)
        scores[..., grid * grid] += 3.0  # <bos> takes most, as it does in real models
        types = torch.tensor([0] * (grid * grid + prompt) + [1] * answer)
        yield Case((scores.softmax(dim=-1), types, layer, t, grid, size),
                   sizes={"layers": layers, "H": H, "L": L, "size": size})  # fmt: skip


def first_head(decoder, *rest):
    return viewer_map(decoder[:, :1], *rest)


def each_head_scaled(decoder, *rest):
    """The mean of maps that were each divided by their own largest value."""
    return torch.stack([viewer_map(decoder[:, head : head + 1], *rest) for head in range(decoder.shape[1])]).mean(dim=0)


def scaled_again(*inputs):
    weights = each_head_scaled(*inputs)
    return weights / weights.max()


def viewing(whose=lambda weights, place: weights[place], row=-1, layer=None, heads=lambda x: x.mean(dim=0),
            scale=lambda x: x / x.max()):  # fmt: skip
    """`viewer_map` with one step done differently."""

    def function(decoder, token_type_ids, chosen, t, grid, size):
        answer = token_type_ids.nonzero().flatten().tolist()
        place = answer[t - 1] if row == "before in the answer" else t - 1 if row == "t" else answer[t] + row
        weights = heads(decoder[chosen if layer is None else layer])
        square = scale(whose(weights, place)[: grid * grid]).view(grid, grid)
        return square.repeat_interleave(size // grid, 0).repeat_interleave(size // grid, 1)

    return function


def all_layers(decoder, token_type_ids, layer, *rest):
    return viewer_map(decoder.mean(dim=0, keepdim=True), token_type_ids, 0, *rest)


def unscaled_map(decoder, token_type_ids, layer, t, grid, size):
    row = decoder[layer].mean(dim=0)[int(token_type_ids.nonzero()[t]) - 1, : grid * grid]
    return row.view(grid, grid).repeat_interleave(size // grid, 0).repeat_interleave(size // grid, 1)


def summed_to_one(*inputs):
    """Scaled by the sum instead of the largest."""
    weights, repeats = viewer_map(*inputs), (inputs[-1] // inputs[-2]) ** 2
    return weights / (weights.sum() / repeats)


def show_viewer(thing):
    """What each of the first words of the trained model's caption looked at, in the layer that looks most."""
    from ..visualize import show_answer_attention  # here: matplotlib is not needed for anything else

    if watching.trained() is None:
        print(NO_MODEL)
        return
    image, _, attention = recorded()
    positions, N = attention.queries + 1, attention.grid**2
    busiest = int(attention.decoder[:, :, attention.queries, :N].sum(-1).mean((1, 2)).argmax())
    types = torch.zeros(attention.decoder.shape[-1], dtype=torch.long)
    types[positions] = 1
    count = min(5, len(attention.tokens))
    maps = [thing(attention.decoder, types, busiest, t, attention.grid, 32 * attention.grid) for t in range(count)]
    print(f"  the model says: {attention.text}")
    print(f"  what its first tokens looked at, in layer {busiest}:")
    show_answer_attention(image, maps, attention.tokens[:count])


VIEWER = Task(
    id="14.4",
    title="find the three faults in a viewer",
    points=3,
    minutes=12,
    level="medium",
    importance="deepen",
    reference=viewer_map,
    cases=viewer_cases,
    gradients=False,
    see='chapter 14, "By hand" and "Record an answer"',
    reward=show_viewer,
    mistakes=[
        *faults_left(FAULTS, lambda some: lambda *inputs: viewer_map(*inputs, faults=some)),
        Mistake("first head only", "the map is the first head's; it is to be the mean of all heads of the layer",
                first_head),
        Mistake("heads scaled before the mean", "each head is divided by its own largest value before the mean, "
                "so a head that hardly looks at the picture counts as much as any other: the mean comes first",
                [each_head_scaled, scaled_again]),
        Mistake("not scaled", "the map is not scaled at all: its largest value is to be 1", unscaled_map),
        Mistake("divided by the sum", "the map sums to 1; its largest value is to be 1", summed_to_one),
        Mistake("place in the answer", "`answer[t - 1]` is the token of the answer before: before the first there is "
                "the "
                "prompt's last one, and an index of -1 counts from the end", viewing(row="before in the answer")),
        Mistake("place in the answer", "t is taken for a place in the sequence: it counts the tokens of the answer",
                viewing(row="t")),
        Mistake("layer not used", "the map is that of the last layer, whatever `layer` is", viewing(layer=-1)),
        Mistake("layer not used", "the map is that of the first layer, whatever `layer` is", viewing(layer=0)),
        Mistake("layer not used", "the layers are averaged: one of them is asked for", all_layers),
        Mistake("max instead of mean", "the largest head is taken at each place: the heads are to be averaged",
                viewing(heads=lambda x: x.amax(dim=0))),
        Mistake("column instead of row", "this is a column, who looks at that place: a row holds whom it looks at",
                viewing(lambda weights, place: weights[:, place])),
        Mistake("smallest taken off", "the smallest value is taken off before the division: 0 is to stay 0, and the "
                "rest "
                "in proportion", viewing(scale=lambda x: (x - x.min()) / (x.max() - x.min()))),
    ],
)  # fmt: skip

# --- 14.5 --------------------------------------------------------------------------------------------------------

SCENE = 7001  # a large yellow square above a small purple cross, a large pink square


@functools.cache
def unlabelled() -> dict[str, torch.Tensor]:
    """Six maps [grid, grid] of the trained model's caption of one picture, by panel."""
    attention = answer_attention(*watching.trained(), draw(make_scene(SCENE), size=256), watching.PROMPT)
    words = [token.replace("▁", "").strip() for token in attention.tokens]

    def look(word, layer, heads):
        return torch.stack([attention.to_image(layer, head, words.index(word)) for head in heads]).mean(0)

    return {
        "A": look("pink", 3, (0, 1, 2)),
        "B": look("yellow", 0, (0, 1, 2, 3)),
        "C": look("purple", 3, (0, 1, 2)),
        "D": look("yellow", 3, (3,)),
        "E": look("yellow", 3, (0, 1, 2)).T,
        "F": look("yellow", 3, (0, 1, 2)),
    }


def show_unlabelled() -> None:
    """The picture, and its six maps without their names."""
    from matplotlib import pyplot as plt  # here: matplotlib is not needed for anything else

    if watching.trained() is None:
        print(NO_MODEL)
        return
    panels = {"the picture": draw(make_scene(SCENE), size=256), **unlabelled()}
    _, axes = plt.subplots(1, len(panels), figsize=(13, 2.2))
    for ax, (title, shown) in zip(axes, panels.items(), strict=True):
        ax.imshow(shown, cmap="cividis")
        ax.set(title=title, xticks=[], yticks=[])


MAPS = {
    "A": "pink",
    "B": "yellow, first layer",
    "C": "purple",
    "D": "yellow, the odd head",
    "E": "yellow, on its side",
    "F": "yellow",
}


def show_shares(answer):
    """What tells the maps apart, in numbers."""
    if watching.trained() is None:
        print(NO_MODEL)
        return
    things = {thing.colour: thing.box for thing in make_scene(SCENE).things}
    for panel, weights in unlabelled().items():
        shares = "  ".join(f"{colour} {share_inside(weights, box):.2f}" for colour, box in things.items())
        print(f"  {panel}  {answer()[panel]:22} share inside the box of the thing: {shares}")


READ = matching_task(
    "14.5",
    truth=MAPS,
    confusions={
        frozenset({"yellow", "yellow, on its side"}): "mirrored at the diagonal, what is high up comes to lie far to "
        "the left. Where is the yellow square, and where are the patches of the map?",
        frozenset({"yellow, on its side", "purple"}): "the purple cross lies in the left half and below the middle; a "
        "map on its side has the yellow square's place with y and x exchanged, and its size",
        frozenset(
            {"yellow, first layer", "yellow, the odd head"}
        ): "one of the two avoids all three things and looks at the ground near the edges, as one head may; the mean "
        "of four heads of the first layer is spread over things and ground",
        frozenset({"yellow", "yellow, first layer"}): "the last layer's map lies on one thing",
        frozenset({"pink", "purple"}): "compare with the picture: the pink square is the large one at the bottom right",
    },
    title="read six maps",
    points=3,
    minutes=10,
    level="medium",
    importance="core",
    see='chapter 14, "By hand" and "Record an answer"; the hints of this task',
    reward=show_shares,
)

# --- 14.6 --------------------------------------------------------------------------------------------------------


class Toy:
    """A "model" whose heads each add to its accuracy; one of them does harm."""

    def __init__(self, seed, layers, heads):
        self.layers, self.heads = layers, heads
        worth = torch.randperm(layers * heads, generator=torch.Generator().manual_seed(seed)).double() + 1
        self.worth = worth.view(layers, heads) / worth.sum() * 0.5
        harmful = divmod(int(worth.argmin()), heads)
        self.worth[harmful] = -(1.5 if seed % 2 else 0.5) * self.worth.max()
        self.silenced: list[tuple[int, int]] = []

    def accuracy(self) -> float:
        return 0.75 - sum(float(self.worth[place]) for place in self.silenced)

    def ablate(self, layer, head):
        if not (0 <= layer < self.layers and 0 <= head < self.heads):
            raise ValueError(f"there is no head {head} in layer {layer}: {self.layers} layers, {self.heads} heads")
        return Silent(self, (int(layer), int(head)))


class Silent:
    """`with Silent(toy, (layer, head)):` the head says nothing inside the block."""

    def __init__(self, toy, place):
        self.toy, self.place = toy, place

    def __enter__(self):
        self.toy.silenced.append(self.place)

    def __exit__(self, *error):
        self.toy.silenced.remove(self.place)


def search(function, seed, layers, heads):
    toy = Toy(seed, layers, heads)
    result = function(toy.accuracy, toy.ablate, layers, heads)
    if result is None:
        return None
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise TypeError(f"two things are to come back, the table and the head; this is a {type(result).__name__}")
    lost, head = result
    return {"lost": lost, "the head": head, "heads still silenced afterwards": len(toy.silenced)}


def head_that_counts(accuracy, ablate, layers, heads):
    whole = accuracy()
    without = []
    for layer in range(layers):
        for head in range(heads):
            with ablate(layer, head):
                without.append(accuracy())
    lost = whole - torch.tensor(without, dtype=torch.float64)
    return lost.float().view(layers, heads), divmod(int(lost.argmax()), heads)


def searching(table=lambda whole, without: whole - without, pick=lambda lost: int(lost.argmax()),
              split=lambda place, layers, heads: divmod(place, heads), close=True, enter=True, first=None):  # fmt: skip
    """`head_that_counts` with one step done differently; `first` is a head that is away when the whole is measured."""

    def function(accuracy, ablate, layers, heads):
        with ablate(*first) if first else nullcontext():
            whole = accuracy()
        without, blocks = torch.zeros(layers, heads), []
        for layer in range(layers):
            for head in range(heads):
                block = ablate(layer, head)
                if enter:
                    block.__enter__()
                    blocks.append(block)
                without[layer, head] = accuracy()
                if enter and close is True:
                    block.__exit__(None, None, None)
        if close == "at the end":
            for block in blocks:
                block.__exit__(None, None, None)
        lost = table(whole, without)
        return lost, split(pick(lost), layers, heads)

    return function


def without_the_last(places):
    """Some heads are never taken away: their losses stay 0. `places(layers, heads)` says how far the loops go."""

    def function(accuracy, ablate, layers, heads):
        whole, lost = accuracy(), torch.zeros(layers, heads)
        for layer in range(places(layers, heads)[0]):
            for head in range(places(layers, heads)[1]):
                with ablate(layer, head):
                    lost[layer, head] = whole - accuracy()
        return lost, divmod(int(lost.argmax()), heads)

    return function


def search_cases(seed):
    yield Case((seed, 3, 4), note="3 layers of 4 heads")
    yield Case((seed + 21, 2, 5), note="2 layers of 5 heads")
    yield Case((seed + 40, 4, 2), note="4 layers of 2 heads")


def colour_accuracy():
    """(asked, accuracy): twelve questions about colours, and how many of them the trained model answers, 0 to 1."""
    model, processor = watching.trained()
    asked = colour_questions(7400, 12)
    images, prompts = [draw(scene) for scene, _, _ in asked], [prompt for _, _, prompt in asked]

    def accuracy():
        answers = generate(model, processor, images, prompts, max_new_tokens=4)
        return sum(answer == thing_.colour for answer, (_, thing_, _) in zip(answers, asked, strict=True)) / len(asked)

    return asked, accuracy


def search_trained(thing):
    """(asked, accuracy of the whole, table of losses, (layer, head)) of the trained model."""
    model = watching.trained()[0]
    config = model.config.text_config
    asked, accuracy = colour_accuracy()
    lost, place = thing(
        accuracy, lambda i, h: ablate_head(model, i, h), config.num_hidden_layers, config.num_attention_heads
    )
    return asked, accuracy(), lost, place


@functools.cache
def most_lost():
    if watching.trained() is None:
        return "no trained model here"
    asked, _, lost, (layer, head) = search_trained(head_that_counts)
    return round(float(lost[layer, head]) * len(asked))


def show_search(thing):
    """Which head of the trained model costs most answers about colours, and which looks at the thing most."""
    from ..visualize import show_matrix  # here: matplotlib is not needed for anything else

    if watching.trained() is None:
        print(NO_MODEL)
        return
    asked, whole, lost, (layer, head) = search_trained(thing)
    _, seen, attention = recorded(caption=False)
    shares = {
        (i, h): share_inside(attention.to_image(i, h, 0), seen.box)
        for i in range(len(lost))
        for h in range(len(lost[0]))
    }
    looks, share = max(shares.items(), key=lambda item: item[1])
    print(f"  of {len(asked)} questions about colours the model answers {round(whole * len(asked))} rightly")
    print(
        f"  missed most: layer {layer}, head {head}; without it {round(float(lost[layer, head]) * len(asked))} are lost"
    )
    print(
        f"  looks at the thing most: layer {looks[0]}, head {looks[1]} ({share:.2f} of its attention to the picture);"
    )
    print(f"  without that one {round(float(lost[looks]) * len(asked))} are lost")
    axes = show_matrix(lost, title="answers lost without a head", vmin=0, vmax=1)
    axes.set(xlabel="head", ylabel="layer")


SEARCH = Task(
    id="14.6",
    title="find the head that counts",
    points=4,
    minutes=15,
    level="medium",
    importance="core",
    prediction=Prediction(
        "Of 12 questions about colours, how many does the trained model lose without the head that it misses most?",
        truth=most_lost,
        tempting=12,
        why="No single head carries the answer: several look at the thing (task 14.2), and when one is gone the others "
        "still do. The one that looks most need not be the one that is missed most.",
    ),
    reference=head_that_counts,
    cases=search_cases,
    use=search,
    gradients=False,
    see='chapter 14, "Break it"; the hints of this task',
    reward=show_search,
    mistakes=[
        Mistake("accuracy instead of loss", "the table holds what is left without a head, and is to hold what is lost; "
                "the head is the one that is missed least", searching(lambda whole, without: without)),
        Mistake("accuracy instead of loss", "the table holds what is left without a head, and is to hold what is lost",
                searching(lambda whole, without: without, lambda lost: int(lost.argmin()))),
        Mistake("sign of the loss", "the table has the wrong sign: a head that is missed has a positive loss",
                searching(lambda whole, without: without - whole)),
        Mistake("sign of the loss", "the table has the wrong sign: a head that is missed has a positive loss",
                searching(lambda whole, without: without - whole, lambda lost: int(lost.argmin()))),
        Mistake("least important head", "the table is right; the head is the one with the smallest loss",
                searching(pick=lambda lost: int(lost.argmin()))),
        Mistake("largest change either way", "the head is the one with the largest change, better or worse: the one "
                "that is missed most is wanted", searching(pick=lambda lost: int(lost.abs().argmax()))),
        Mistake("largest change either way", "the table holds changes without their sign: a model may get better "
                "without a head", searching(lambda whole, without: (whole - without).abs())),
        Mistake("relative loss", "the loss is divided by the accuracy of the whole model",
                searching(lambda whole, without: (whole - without) / whole)),
        Mistake("layer and head swapped", "the head comes before the layer",
                searching(split=lambda place, layers, heads: divmod(place, heads)[::-1])),
        Mistake("place split by the wrong length", "the place in the flat table is divided by the number of layers: a "
                "row of it has as many entries as a layer has heads",
                searching(split=lambda place, layers, heads: divmod(place, layers))),
        Mistake("left silenced", "heads stay silenced, one after another: use `ablate` in a `with` statement",
                [searching(close=False), searching(close="at the end")]),
        Mistake("never taken away", "all losses are zero: `ablate` does something only inside a `with` block, and the "
                "accuracy must be measured there", searching(enter=False)),
        Mistake("negative losses cut off", "losses below 0 are held at 0: a model may get better without a head, and "
                "the "
                "table is to say so", searching(lambda whole, without: (whole - without).clamp(min=0))),
        Mistake("whole measured without a head", "the whole model was measured while a head was away: measure it "
                "before "
                "anything is taken away", searching(first=(0, 0))),
        Mistake("heads left out", "the last head of each layer is never taken away",
                without_the_last(lambda layers, heads: (layers, heads - 1))),
        Mistake("heads left out", "the last layer's heads are never taken away",
                without_the_last(lambda layers, heads: (layers - 1, heads))),
        Mistake("place in the flat table", "the head is a place in the flat table: layer and head are asked for",
                searching(split=lambda place, layers, heads: place)),
    ],
)  # fmt: skip

TASKS = [CHOOSE, SHARE, ROLL, VIEWER, READ, SEARCH]
