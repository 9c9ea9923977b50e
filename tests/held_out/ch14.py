"""Held-out solutions of chapter 14."""

# ruff: noqa: E501
# fmt: off

from . import answer, change, exchange, right, wrong

# --- 14.1 -------------------------------------------------------------------------------------------------------------

wrong("14.1", "own row", """
def chosen_by(weights, position, grid):
    return weights[:, :, position, : grid * grid].unflatten(-1, (grid, grid))
""", truth="the row of the token itself is taken, not the one before, which chose it")
wrong("14.1", "row after", """
def chosen_by(weights, position, grid):
    return weights[:, :, position + 1, : grid * grid].unflatten(-1, (grid, grid))
""", truth="the row after the token is taken")
wrong("14.1", "column instead of row", """
def chosen_by(weights, position, grid):
    return weights[:, :, : grid * grid, position - 1].unflatten(-1, (grid, grid))
""", truth="takes a column (who looks at the token), not a row")
wrong("14.1", "on its side", """
def chosen_by(weights, position, grid):
    return weights[:, :, position - 1, : grid * grid].unflatten(-1, (grid, grid)).transpose(-1, -2)
""", truth="rows and columns of the map are exchanged", says="grid is on its side")
wrong("14.1", "last columns", """
def chosen_by(weights, position, grid):
    return weights[:, :, position - 1, -grid * grid :].unflatten(-1, (grid, grid))
""", truth="takes the last grid * grid columns, not the first")
wrong("14.1", "divided by their sum", """
def chosen_by(weights, position, grid):
    m = weights[:, :, position - 1, : grid * grid]
    return (m / m.sum(-1, keepdim=True)).unflatten(-1, (grid, grid))
""", truth="the weights are divided by their sum; they are wanted as they are")
wrong("14.1", "mean over heads", """
def chosen_by(weights, position, grid):
    return weights[:, :, position - 1, : grid * grid].unflatten(-1, (grid, grid)).mean(dim=1)
""", truth="averages over the heads")
wrong("14.1", "from column 1", """
def chosen_by(weights, position, grid):
    return weights[:, :, position - 1, 1 : grid * grid + 1].unflatten(-1, (grid, grid))
""", truth="the columns begin at 1 instead of 0")
wrong("14.1", "last layer only", """
def chosen_by(weights, position, grid):
    return weights[-1, :, position - 1, : grid * grid].unflatten(-1, (grid, grid))
""", truth="only the last layer is returned")
wrong("14.1", "last row", """
def chosen_by(weights, position, grid):
    return weights[:, :, -1, : grid * grid].unflatten(-1, (grid, grid))
""", truth="takes the last row of the sequence, whatever the position")
right("14.1", "loops", """
def chosen_by(weights, position, grid):
    layers, H = weights.shape[:2]
    out = torch.zeros(layers, H, grid, grid, dtype=weights.dtype)
    for r in range(grid):
        for c in range(grid):
            out[..., r, c] = weights[..., position - 1, r * grid + c]
    return out
""")

# --- 14.2 -------------------------------------------------------------------------------------------------------------

SHARE = """
def share_inside(weights, box):
    grid = len(weights)
    edges = torch.arange(grid + 1) / grid
    y1, x1, y2, x2 = box
    rows = (edges[1:].clamp(max=y2) - edges[:-1].clamp(min=y1)).clamp(min=0) * grid
    columns = (edges[1:].clamp(max=x2) - edges[:-1].clamp(min=x1)).clamp(min=0) * grid
    inside = rows[:, None] * columns[None, :]
    return float((weights * inside).sum() / weights.sum())
"""
change("14.2", "x and y exchanged", SHARE, ("y1, x1, y2, x2 = box", "x1, y1, x2, y2 = box"), truth="the box is read as (x1, y1, x2, y2)")
change("14.2", "mask on its side", SHARE, ("rows[:, None] * columns[None, :]", "rows[None, :] * columns[:, None]"), truth="rows and columns of the mask are exchanged")
change("14.2", "not divided", SHARE, (" / weights.sum())", ")"), truth="what is inside is not divided by what the picture gets")
change("14.2", "divided by the patches inside", SHARE, (" / weights.sum())", " / inside.sum())"), truth="divides by the area inside (a mean), not by the picture's sum")
change("14.2", "whole patches by their middle", SHARE, ("rows = (edges[1:].clamp(max=y2) - edges[:-1].clamp(min=y1)).clamp(min=0) * grid", "middle = (edges[1:] + edges[:-1]) / 2\n    rows = ((middle > y1) & (middle < y2)).float()"), ("columns = (edges[1:].clamp(max=x2) - edges[:-1].clamp(min=x1)).clamp(min=0) * grid", "columns = ((middle > x1) & (middle < x2)).float()"), truth="a patch counts wholly if its middle is inside, not by its part")
change("14.2", "every patch touched", SHARE, ("    inside = rows[:, None] * columns[None, :]", "    inside = ((rows[:, None] * columns[None, :]) > 0).float()"), truth="a patch that the box touches counts wholly")
change("14.2", "not times grid", SHARE, (".clamp(min=0) * grid\n", ".clamp(min=0)\n"), truth="the parts are not multiplied by grid: a whole patch counts 1 / grid squared")
change("14.2", "only once times grid", SHARE, ("columns = (edges[1:].clamp(max=x2) - edges[:-1].clamp(min=x1)).clamp(min=0) * grid", "columns = (edges[1:].clamp(max=x2) - edges[:-1].clamp(min=x1)).clamp(min=0)"), truth="only the rows are multiplied by grid", says="one of the two overlaps")
change("14.2", "negative parts", SHARE, (".clamp(min=0) * grid\n", " * grid\n"), truth="parts of patches outside are negative: they are not held at 0")
change("14.2", "share outside", SHARE, ("float((weights * inside).sum() / weights.sum())", "1 - float((weights * inside).sum() / weights.sum())"), truth="returns the share outside")
change("14.2", "area of the box", SHARE, ("(weights * inside).sum() / weights.sum()", "inside.sum() / grid**2"), truth="returns the box's share of the area; the weights are not used")
change("14.2", "sum of parts", SHARE, ("rows[:, None] * columns[None, :]", "(rows[:, None] + columns[None, :]) / 2"), truth="adds the row's and the column's part instead of multiplying")
change("14.2", "rows only", SHARE, ("rows[:, None] * columns[None, :]", "rows[:, None] * torch.ones(grid)"), truth="only the rows are looked at")
right("14.2", "python loops", """
def share_inside(weights, box):
    grid = weights.shape[0]
    y1, x1, y2, x2 = [side * grid for side in box]
    total = inside = 0.0
    for r in range(grid):
        for c in range(grid):
            w = float(weights[r, c])
            part = max(0.0, min(r + 1, y2) - max(r, y1)) * max(0.0, min(c + 1, x2) - max(c, x1))
            total += w
            inside += w * part
    return inside / total
""")

# --- 14.3 -------------------------------------------------------------------------------------------------------------

ROLL = """
def rollout(attention):
    L = attention.shape[-1]
    result = torch.eye(L)
    for layer in attention.mean(dim=1):
        mixed = 0.5 * layer + 0.5 * torch.eye(L)
        result = mixed @ result
    return result
"""
change("14.3", "wrong side", ROLL, ("mixed @ result", "result @ mixed"), truth="the later layer stands on the right; it must stand on the left")
change("14.3", "no residual", ROLL, ("0.5 * layer + 0.5 * torch.eye(L)", "layer"), truth="the half for the residual connection (identity) is missing")
change("14.3", "identity not halved", ROLL, ("0.5 * layer + 0.5 * torch.eye(L)", "layer + torch.eye(L)"), truth="attention and identity are added without halving: rows do not sum to 1")
change("14.3", "heads added", ROLL, ("attention.mean(dim=1)", "attention.sum(dim=1)"), truth="the heads are added up, not averaged")
change("14.3", "largest head", ROLL, ("attention.mean(dim=1)", "attention.amax(dim=1)"), truth="takes the largest head instead of the mean")
change("14.3", "first head", ROLL, ("attention.mean(dim=1)", "attention[:, 0]"), truth="takes head 0 alone")
change("14.3", "mean over layers", ROLL, ("attention.mean(dim=1)", "attention.mean(dim=0)"), truth="averages over layers instead of heads")
change("14.3", "product of numbers", ROLL, ("mixed @ result", "mixed * result"), truth="multiplies number by number instead of the matrices")
change("14.3", "layers averaged", ROLL, ("    result = torch.eye(L)\n", "    result = torch.zeros(L, L)\n"), ("mixed @ result", "result + mixed / len(attention)"), truth="averages the layers' matrices instead of multiplying them")
change("14.3", "last layer only", ROLL, ("result = mixed @ result", "result = mixed"), truth="only the last layer is used")
change("14.3", "first layer left out", ROLL, ("attention.mean(dim=1)", "attention.mean(dim=1)[1:]"), truth="the first layer is left out")
change("14.3", "transposed", ROLL, ("    return result", "    return result.T"), truth="the result is transposed: columns, not rows, say where tokens gathered from")
change("14.3", "identity once", ROLL, ("        mixed = 0.5 * layer + 0.5 * torch.eye(L)\n        result = mixed @ result\n    return result", "        result = layer @ result\n    return 0.5 * result + 0.5 * torch.eye(L)"), truth="the identity is mixed in once at the end, not in each layer")
right("14.3", "multi_dot of reversed layers", """
def rollout(attention):
    half = attention.mean(1).mul(0.5)
    half = half + 0.5 * torch.eye(half.shape[-1], dtype=half.dtype).expand_as(half)
    layers = list(half.flip(0))
    return torch.linalg.multi_dot(layers) if len(layers) > 1 else layers[0]
""")
right("14.3", "reduce and einsum", """
def rollout(attention):
    from functools import reduce
    heads = torch.einsum("nhij->nij", attention) / attention.shape[1]
    mixed = [(layer + torch.eye(len(layer))) / 2 for layer in heads]
    return reduce(lambda so_far, layer: torch.einsum("ij,jk->ik", layer, so_far), mixed)
""")

# --- 14.4 -------------------------------------------------------------------------------------------------------------

VIEW = """
def viewer_map(decoder, token_type_ids, layer, t, grid, size):
    answer = token_type_ids.nonzero().flatten()
    row = decoder[layer].mean(dim=0)[answer[t] - 1][: grid * grid]
    row = row / row.max()
    scale = size // grid
    picture = torch.zeros(size, size)
    for i in range(grid * grid):
        y, x = divmod(i, grid)
        picture[y * scale : (y + 1) * scale, x * scale : (x + 1) * scale] = row[i]
    return picture
"""
change("14.4", "row of the token itself", VIEW, ("answer[t] - 1", "answer[t]"), truth="the row is the token's own: it shows what the next token was chosen from")
change("14.4", "token before in the answer", VIEW, ("answer[t] - 1", "answer[t - 1]"), truth="answer[t - 1] is not the place before for t = 0")
change("14.4", "still on its side", VIEW, ("y, x = divmod", "x, y = divmod"), truth="divmod gives the row first: x and y are exchanged")
change("14.4", "largest of the text", VIEW, ("[: grid * grid]", ""), truth="divides by the largest value of the whole row, the text's too")
change("14.4", "maximum before the mean", VIEW, ("    row = decoder[layer].mean(dim=0)[answer[t] - 1][: grid * grid]\n    row = row / row.max()\n", "    rows = decoder[layer][:, answer[t] - 1, : grid * grid]\n    row = (rows / rows.amax(dim=-1, keepdim=True)).mean(dim=0)\n"), truth="each head is divided by its own maximum before the mean", says="each head is divided by its own largest value")
change("14.4", "maximum before the mean and after", VIEW, ("    row = decoder[layer].mean(dim=0)[answer[t] - 1][: grid * grid]\n", "    rows = decoder[layer][:, answer[t] - 1, : grid * grid]\n    row = (rows / rows.amax(dim=-1, keepdim=True)).mean(dim=0)\n"), truth="each head is divided by its own maximum before the mean", says="each head is divided by its own largest value")
change("14.4", "divided by the sum", VIEW, ("row / row.max()", "row / row.sum()"), truth="divides by the sum, so the largest value is not 1")
change("14.4", "not divided", VIEW, ("    row = row / row.max()\n", ""), truth="is not divided by its largest value")
change("14.4", "last layer always", VIEW, ("decoder[layer]", "decoder[-1]"), truth="always the last layer; layer is not used")
change("14.4", "all layers", VIEW, ("decoder[layer].mean(dim=0)", "decoder.mean(dim=(0, 1))"), truth="averages over layers as well")
change("14.4", "largest head", VIEW, ("decoder[layer].mean(dim=0)", "decoder[layer].amax(dim=0)"), truth="takes the largest head instead of the mean")
change("14.4", "column", VIEW, ("decoder[layer].mean(dim=0)[answer[t] - 1]", "decoder[layer].mean(dim=0)[:, answer[t] - 1]"), truth="takes a column (who looks at it) instead of a row")
change("14.4", "smallest taken off", VIEW, ("row / row.max()", "(row - row.min()) / (row.max() - row.min())"), truth="the smallest value is taken off before dividing")
change("14.4", "place t of the sequence", VIEW, ("answer[t] - 1", "t - 1"), truth="t counts tokens of the answer, not of the sequence")
right("14.4", "kron", """
def viewer_map(decoder, token_type_ids, layer, t, grid, size):
    start = int((token_type_ids == 1).int().argmax())
    patches = decoder[layer, :, start + t - 1, : grid**2].mean(0).reshape(grid, grid)
    return torch.kron(patches / patches.amax(), torch.ones(size // grid, size // grid))
""")
right("14.4", "repeat_interleave", """
def viewer_map(decoder, token_type_ids, layer, t, grid, size):
    place = [i for i, kind in enumerate(token_type_ids.tolist()) if kind == 1][t]
    m = decoder[layer].narrow(-1, 0, grid * grid)[:, place - 1].mean(dim=0).view(grid, grid)
    m = m.repeat_interleave(size // grid, dim=0).repeat_interleave(size // grid, dim=1)
    return m.div(m.max())
""")

# --- 14.5 -------------------------------------------------------------------------------------------------------------

MAPS = {"A": "pink", "B": "yellow, first layer", "C": "purple", "D": "yellow, the odd head", "E": "yellow, on its side", "F": "yellow"}
wrong("14.5", "yellow and on its side exchanged", answer("names", exchange(MAPS, "E", "F")), truth="F is yellow, E is the one on its side")
wrong("14.5", "first layer and odd head exchanged", answer("names", exchange(MAPS, "B", "D")), truth="B is the first layer, D the odd head")
wrong("14.5", "pink and purple exchanged", answer("names", exchange(MAPS, "A", "C")), truth="A is pink and C is purple")
wrong("14.5", "three turned round", answer("names", MAPS | {"C": MAPS["E"], "E": MAPS["D"], "D": MAPS["C"]}), truth="C is purple, E is on its side, and D is the odd head")
wrong("14.5", "one name twice", answer("names", MAPS | {"E": "yellow"}), truth="the name 'yellow' is given to E and F")

# --- 14.6 -------------------------------------------------------------------------------------------------------------

HEADS = """
def head_that_counts(accuracy, ablate, layers, heads):
    whole = accuracy()
    table = torch.zeros(layers, heads)
    for layer in range(layers):
        for head in range(heads):
            with ablate(layer, head):
                table[layer, head] = whole - accuracy()
    return table, divmod(int(table.argmax()), heads)
"""
change("14.6", "sign turned", HEADS, ("whole - accuracy()", "accuracy() - whole"), truth="the difference is the wrong way round: a loss comes out negative")
change("14.6", "measured after the block", HEADS, ("                table[layer, head] = whole - accuracy()", "                pass\n            table[layer, head] = whole - accuracy()"), truth="measures after the with block, when the head is back")
change("14.6", "accuracy instead of loss", HEADS, ("whole - accuracy()", "accuracy()"), truth="the table holds the accuracies, not what is lost")
change("14.6", "accuracy, smallest", HEADS, ("whole - accuracy()", "accuracy()"), ("table.argmax()", "table.argmin()"), truth="the table holds the accuracies, not what is lost (the head is right)")
change("14.6", "largest size", HEADS, ("table.argmax()", "table.abs().argmax()"), truth="takes the largest difference in size: a head that harms may win")
change("14.6", "absolute losses", HEADS, ("whole - accuracy()", "abs(whole - accuracy())"), truth="the losses' signs are taken away", says="changes without their sign")
change("14.6", "losses held at 0", HEADS, ("whole - accuracy()", "max(0.0, whole - accuracy())"), truth="negative losses are cut off at 0")
change("14.6", "least missed", HEADS, ("argmax", "argmin"), truth="returns the head that is missed least")
change("14.6", "head and layer exchanged", HEADS, ("divmod(int(table.argmax()), heads)", "divmod(int(table.argmax()), heads)[::-1]"), truth="returns (head, layer)")
change("14.6", "divided by layers", HEADS, ("divmod(int(table.argmax()), heads)", "divmod(int(table.argmax()), layers)"), truth="divmod by the number of layers instead of heads")
change("14.6", "table on its side", HEADS, ("    return table,", "    return table.T,"), truth="the table is [heads, layers]", says="[4, 3], expected [3, 4]")
change("14.6", "whole measured without a head", HEADS, ("    whole = accuracy()\n", "    with ablate(0, 0):\n        whole = accuracy()\n"), truth="the whole model is measured inside the first block, with a head away")
change("14.6", "heads stay away", HEADS, ("    table = torch.zeros(layers, heads)\n", "    table = torch.zeros(layers, heads)\n    from contextlib import ExitStack\n    stack = ExitStack()\n"), ("            with ablate(layer, head):\n                table", "            stack.enter_context(ablate(layer, head))\n            table"), ("    return table,", "    stack.close()\n    return table,"), truth="heads that were taken away are not put back: losses add up")
change("14.6", "flat place", HEADS, ("divmod(int(table.argmax()), heads)", "int(table.argmax())"), truth="returns the place in the flat table, not (layer, head)")
change("14.6", "last head of each layer forgotten", HEADS, ("range(heads)", "range(heads - 1)"), truth="the last head of each layer is not tried")
change("14.6", "relative loss", HEADS, ("whole - accuracy()", "(whole - accuracy()) / whole"), truth="the loss is divided by the whole accuracy")
right("14.6", "list and unravel_index", """
def head_that_counts(accuracy, ablate, layers, heads):
    def without(layer, head):
        with ablate(layer, head):
            return accuracy()

    left = torch.tensor([[without(i, j) for j in range(heads)] for i in range(layers)], dtype=torch.float64)
    lost = (accuracy() - left).float()
    best = max(((i, j) for i in range(layers) for j in range(heads)), key=lambda place: lost[place])
    return lost, best
""")
