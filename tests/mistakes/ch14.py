"""Attention maps, rollout and ablation, as learners write them."""

from functools import reduce

import numpy as np
import torch
from torch.nn import functional as F

from . import right, wrong

# --- 14.1 --------------------------------------------------------------------------------------------------------


@right("14.1")
def _(weights, position, grid):
    row = weights[:, :, position - 1, :]
    return row[:, :, : grid**2].view(weights.shape[0], weights.shape[1], grid, grid)


@right("14.1")
def _(weights, position, grid):
    maps = [[head[position - 1][: grid * grid].reshape(grid, grid) for head in layer] for layer in weights]
    return torch.stack([torch.stack(layer) for layer in maps])


@right("14.1")
def _(weights, position, grid):
    picture = weights.narrow(-1, 0, grid * grid)
    return picture.select(2, position - 1).unflatten(-1, (grid, grid))


@wrong("14.1", "row of the token itself")
def _(weights, position, grid):
    return weights[:, :, position, : grid * grid].unflatten(-1, (grid, grid))


@wrong("14.1", "one row too early")
def _(weights, position, grid):
    return weights[:, :, position - 2, : grid * grid].unflatten(-1, (grid, grid))


@wrong("14.1", "last row")
def _(weights, position, grid):
    return weights[:, :, -1, : grid * grid].reshape(*weights.shape[:2], grid, grid)


@wrong("14.1", "column instead of row")
def _(weights, position, grid):
    return weights[:, :, : grid * grid, position - 1].reshape(*weights.shape[:2], grid, grid)


@wrong("14.1", "column instead of row")
def _(weights, position, grid):
    return weights.transpose(2, 3)[:, :, position, : grid * grid].reshape(*weights.shape[:2], grid, grid)


@wrong("14.1", "text instead of picture")
def _(weights, position, grid):
    return weights[:, :, position - 1, weights.shape[-1] - grid * grid :].reshape(*weights.shape[:2], grid, grid)


@wrong("14.1", "rows and columns swapped")
def _(weights, position, grid):
    return weights[:, :, position - 1, : grid * grid].unflatten(-1, (grid, grid)).mT


@wrong("14.1", "divided by the sum")
def _(weights, position, grid):
    row = weights[:, :, position - 1, : grid * grid]
    return F.normalize(row, p=1, dim=-1).unflatten(-1, (grid, grid))


@wrong("14.1", "divided by the largest")
def _(weights, position, grid):
    row = weights[:, :, position - 1, : grid * grid]
    return (row / row.max(-1, keepdim=True).values).unflatten(-1, (grid, grid))


@wrong("14.1", "heads averaged")
def _(weights, position, grid):
    return weights.mean(dim=1)[:, position - 1, : grid * grid].unflatten(-1, (grid, grid))


@wrong("14.1", "shape")
def _(weights, position, grid):
    return weights[:, :, position - 1, : grid * grid]


@wrong("14.1", "raised")
def _(weights, position, grid):
    return weights[:, :, position - 1].view(*weights.shape[:2], grid, grid)


# --- 14.2 --------------------------------------------------------------------------------------------------------


@right("14.2")
def _(weights, box):
    grid = len(weights)
    edges = torch.arange(grid + 1) / grid
    rows = (torch.minimum(edges[1:], torch.tensor(box[2])) - torch.maximum(edges[:-1], torch.tensor(box[0]))).relu()
    columns = (torch.minimum(edges[1:], torch.tensor(box[3])) - torch.maximum(edges[:-1], torch.tensor(box[1]))).relu()
    inside = rows[:, None] * grid * columns * grid
    return (weights * inside).sum().item() / weights.sum().item()


@right("14.2")
def _(weights, box):
    """Cumulative coverage: the part of each patch below the far side, less the part below the near side."""
    g = weights.shape[0]
    places = torch.arange(g)
    y = (box[2] * g - places).clamp(0, 1) - (box[0] * g - places).clamp(0, 1)
    x = (box[3] * g - places).clamp(0, 1) - (box[1] * g - places).clamp(0, 1)
    return torch.einsum("y,yx,x->", y, weights, x) / weights.sum()


@right("14.2")
def _(weights, box):
    w = weights.numpy().astype(np.float64)
    total = 0.0
    g = len(w)
    for (r, c), value in np.ndenumerate(w):
        h = max(0, min(box[2], (r + 1) / g) - max(box[0], r / g)) * g
        v = max(0, min(box[3], (c + 1) / g) - max(box[1], c / g)) * g
        total += value * h * v
    return float(total / w.sum())


def part(low, high, grid):
    places = torch.arange(grid)
    return (high * grid - places).clamp(0, 1) - (low * grid - places).clamp(0, 1)


def share(weights, box, cover=part):
    inside = torch.outer(cover(box[0], box[2], len(weights)), cover(box[1], box[3], len(weights)))
    return (weights * inside).sum(), inside


@wrong("14.2", "not divided by the picture's sum")
def _(weights, box):
    return share(weights, box)[0].item()


@wrong("14.2", "y and x swapped")
def _(weights, box):
    return (share(weights.T, box)[0] / weights.sum()).item()


@wrong("14.2", "rounded to patches")
def _(weights, box):
    y1, x1, y2, x2 = (round(side * len(weights)) for side in box)
    return (weights[y1:y2, x1:x2].sum() / weights.sum()).item()


@wrong("14.2", "rounded to patches")
def _(weights, box):
    y1, x1, y2, x2 = (int(side * len(weights)) for side in box)
    return float(weights[y1:y2, x1:x2].sum() / weights.sum())


@wrong("14.2", "rounded to patches")
def _(weights, box):
    g = len(weights)
    y1, x1 = int(box[0] * g), int(box[1] * g)
    y2, x2 = int(np.ceil(box[2] * g)), int(np.ceil(box[3] * g))
    return float(weights[y1:y2, x1:x2].sum() / weights.sum())


@wrong("14.2", "rounded to patches")
def _(weights, box):
    g, total = len(weights), 0.0
    for r in range(g):
        for c in range(g):
            if box[0] < (r + 0.5) / g < box[2] and box[1] < (c + 0.5) / g < box[3]:
                total += weights[r, c].item()
    return total / weights.sum().item()


@wrong("14.2", "negative overlap")
def _(weights, box):
    def cover(low, high, g):
        edges = torch.linspace(0, 1, g + 1)
        return g * (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low))

    return (share(weights, box, cover)[0] / weights.sum()).item()


@wrong("14.2", "overlap in parts of the picture")
def _(weights, box):
    return (share(weights, box, lambda *a: part(*a) / a[2])[0] / weights.sum()).item()


@wrong("14.2", "divided by the area")
def _(weights, box):
    area = (box[2] - box[0]) * (box[3] - box[1])
    return (share(weights, box)[0] / weights.sum()).item() / area


@wrong("14.2", "outside")
def _(weights, box):
    inside, _ = share(weights, box)
    return ((weights.sum() - inside) / weights.sum()).item()


# --- 14.3 --------------------------------------------------------------------------------------------------------


@right("14.3")
def _(attention):
    flow = torch.eye(attention.shape[-1])
    for layer in attention:
        mixed = layer.mean(dim=0) + torch.eye(layer.shape[-1])
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        flow = mixed @ flow
    return flow


@right("14.3")
def _(attention):
    A = (attention.mean(1) + torch.eye(attention.shape[-1])) / 2
    return reduce(lambda flow, a: torch.einsum("ij,jk->ik", a, flow), A)


@right("14.3")
def _(attention):
    layers, H, L, _ = attention.shape
    result = None
    for layer in reversed(range(layers)):
        a = sum(attention[layer, h] for h in range(H)) / H / 2 + torch.eye(L) / 2
        result = a if result is None else result @ a
    return result


def rolled(heads=lambda layer: layer.mean(0), mix=lambda a, i: (a + i) / 2, left=True):
    def rollout(attention):
        L = attention.size(-1)
        flow = torch.eye(L)
        for layer in attention:
            a = mix(heads(layer), torch.eye(L))
            flow = torch.matmul(a, flow) if left else torch.matmul(flow, a)
        return flow

    return rollout


right("14.3")(rolled())
wrong("14.3", "residual forgotten")(rolled(mix=lambda a, i: a))
wrong("14.3", "not normalised")(rolled(mix=lambda a, i: a + i))
wrong("14.3", "not normalised")(rolled(mix=lambda a, i: a / 2 + i))
wrong("14.3", "multiplied in the wrong order")(rolled(left=False))
wrong("14.3", "max instead of mean")(rolled(heads=lambda layer: layer.max(dim=0).values))
wrong("14.3", "heads summed")(rolled(heads=lambda layer: layer.sum(0)))
wrong("14.3", "first head only")(rolled(heads=lambda layer: layer[0]))
wrong("14.3", "layers and heads swapped")(lambda attention: rolled()(attention.transpose(0, 1)))
wrong("14.3", "transposed")(lambda attention: rolled()(attention).T)
wrong("14.3", "rows do not sum to 1")(rolled(mix=lambda a, i: 0.9 * a + 0.5 * i))


@wrong("14.3", "multiplied in the wrong order")
def _(attention):
    flow = torch.eye(attention.shape[-1])
    for layer in attention.flip(0):
        flow = (layer.mean(0) / 2 + torch.eye(attention.shape[-1]) / 2) @ flow
    return flow


@wrong("14.3", "multiplied number by number")
def _(attention):
    flow = torch.ones(attention.shape[-1], attention.shape[-1])
    for layer in attention:
        flow = flow * (layer.mean(0) / 2 + torch.eye(attention.shape[-1]) / 2)
    return flow


@wrong("14.3", "layers averaged")
def _(attention):
    return (attention.mean(1) / 2 + torch.eye(attention.shape[-1]) / 2).mean(0)


@wrong("14.3", "last layer only")
def _(attention):
    for layer in attention:
        flow = layer.mean(0) / 2 + torch.eye(attention.shape[-1]) / 2
    return flow


@wrong("14.3", "residual once")
def _(attention):
    flow = torch.eye(attention.shape[-1])
    for layer in attention:
        flow = layer.mean(0) @ flow
    return (flow + torch.eye(attention.shape[-1])) / 2


# --- 14.4 --------------------------------------------------------------------------------------------------------


@right("14.4")
def _(decoder, token_type_ids, layer, t, grid, size):
    answer = token_type_ids.nonzero().flatten()
    row = decoder[layer].mean(dim=0)[answer[t] - 1, : grid * grid]
    row = row / row.max()
    scale = size // grid
    picture = torch.zeros(size, size)
    for i in range(grid * grid):
        y, x = divmod(i, grid)
        picture[y * scale : (y + 1) * scale, x * scale : (x + 1) * scale] = row[i]
    return picture


@right("14.4")
def _(decoder, token_type_ids, layer, t, grid, size):
    first = int((token_type_ids == 1).int().argmax())
    weights = decoder[layer, :, first + t - 1, : grid**2].mean(0).view(1, 1, grid, grid)
    return F.interpolate(weights / weights.amax(), (size, size), mode="nearest")[0, 0]


def listing(before=0, upright=False, cut=False):
    """The code in the notebook, with some of its faults mended."""

    def viewer_map(decoder, token_type_ids, layer, t, grid, size):
        answer = token_type_ids.nonzero().flatten()
        row = decoder[layer].mean(dim=0)[answer[t] - before]
        row = row[: grid * grid] / row[: grid * grid].max() if cut else row / row.max()
        scale = size // grid
        picture = torch.zeros(size, size)
        for i in range(grid * grid):
            y, x = divmod(i, grid) if upright else divmod(i, grid)[::-1]
            picture[y * scale : (y + 1) * scale, x * scale : (x + 1) * scale] = row[i]
        return picture

    return viewer_map


wrong("14.4", "3 left")(listing())
wrong("14.4", "2 left")(listing(before=1))
wrong("14.4", "2 left")(listing(upright=True))
wrong("14.4", "2 left")(listing(cut=True))
wrong("14.4", "row of the token itself")(listing(upright=True, cut=True))
wrong("14.4", "rows and columns swapped")(listing(before=1, cut=True))
wrong("14.4", "scaled with the text")(listing(before=1, upright=True))


@wrong("14.4", "first head only")
def _(decoder, token_type_ids, layer, t, grid, size):
    row = decoder[layer, 0, token_type_ids.nonzero()[t, 0] - 1, : grid * grid]
    return (row / row.max()).view(grid, grid).repeat_interleave(size // grid, 0).repeat_interleave(size // grid, 1)


@wrong("14.4", "divided by the sum")
def _(decoder, token_type_ids, layer, t, grid, size):
    row = decoder[layer].mean(0)[token_type_ids.nonzero()[t, 0] - 1, : grid * grid]
    return torch.kron((row / row.sum()).view(grid, grid), torch.ones(size // grid, size // grid))


# --- 14.5 --------------------------------------------------------------------------------------------------------


def maps(**changed):
    names = ("pink", "yellow, first layer", "purple", "yellow, the odd head", "yellow, on its side", "yellow")
    return lambda: {**dict(zip("ABCDEF", names)), **changed}


right("14.5")(maps())
right("14.5")(lambda: dict(sorted(maps()().items(), reverse=True)))
wrong("14.5", "taken for another")(maps(E="yellow", F="yellow, on its side"))
wrong("14.5", "taken for another")(maps(A="purple", C="pink"))
wrong("14.5", "taken for another")(maps(B="yellow, the odd head", D="yellow, first layer"))
wrong("14.5", "taken for another")(maps(C="yellow, on its side", E="purple"))
wrong("14.5", "a name twice")(maps(E="yellow"))
wrong("14.5", "unknown name")(maps(A="Pink"))
wrong("14.5", "structure")(lambda: {"A": "pink"})
wrong("14.5", "not matched")(maps(A="yellow", F="pink"))
wrong("14.5", "not started")(maps(A=...))


# --- 14.6 --------------------------------------------------------------------------------------------------------


@right("14.6")
def _(accuracy, ablate, layers, heads):
    whole = accuracy()
    lost = torch.zeros(layers, heads)
    best, where = -1.0, None
    for layer in range(layers):
        for head in range(heads):
            with ablate(layer, head):
                lost[layer, head] = whole - accuracy()
            if lost[layer, head] > best:
                best, where = lost[layer, head], (layer, head)
    return lost, where


@right("14.6")
def _(accuracy, ablate, layers, heads):
    def without(layer, head):
        with ablate(layer, head):
            return accuracy()

    table = torch.tensor([[accuracy() - without(i, h) for h in range(heads)] for i in range(layers)])
    layer, head = (table == table.max()).nonzero()[0]
    return table, (layer, head)


def hunt(lose=lambda whole, left: whole - left, choose=torch.argmax, place=None):
    def head_that_counts(accuracy, ablate, layers, heads):
        whole = accuracy()
        lost = torch.empty(layers, heads)
        for i in range(layers):
            for j in range(heads):
                with ablate(i, j):
                    lost[i, j] = lose(whole, accuracy())
        flat = choose(lost).item()
        return lost, place(flat, layers, heads) if place else (flat // heads, flat % heads)

    return head_that_counts


right("14.6")(hunt())
wrong("14.6", "accuracy instead of loss")(hunt(lambda whole, left: left))
wrong("14.6", "accuracy instead of loss")(hunt(lambda whole, left: left, torch.argmin))
wrong("14.6", "sign of the loss")(hunt(lambda whole, left: left - whole))
wrong("14.6", "sign of the loss")(hunt(lambda whole, left: left - whole, torch.argmin))
wrong("14.6", "least important head")(hunt(choose=torch.argmin))
wrong("14.6", "largest change either way")(hunt(choose=lambda lost: lost.abs().argmax()))
wrong("14.6", "largest change either way")(hunt(lambda whole, left: abs(whole - left)))
wrong("14.6", "relative loss")(hunt(lambda whole, left: 1 - left / whole))
wrong("14.6", "layer and head swapped")(hunt(place=lambda flat, layers, heads: (flat % heads, flat // heads)))
wrong("14.6", "place split by the wrong length")(hunt(place=lambda flat, layers, heads: divmod(flat, layers)))


@wrong("14.6", "left silenced")
def _(accuracy, ablate, layers, heads):
    whole, lost = accuracy(), torch.zeros(layers, heads)
    for i in range(layers):
        for j in range(heads):
            ablate(i, j).__enter__()
            lost[i, j] = whole - accuracy()
    return lost, divmod(lost.argmax().item(), heads)


@wrong("14.6", "never taken away")
def _(accuracy, ablate, layers, heads):
    whole, lost = accuracy(), torch.zeros(layers, heads)
    for i in range(layers):
        for j in range(heads):
            with ablate(i, j):
                pass
            lost[i, j] = whole - accuracy()
    return lost, divmod(lost.argmax().item(), heads)


@wrong("14.6", "raised")
def _(accuracy, ablate, layers, heads):
    lost = hunt()(accuracy, ablate, layers, heads)[0]
    return lost
