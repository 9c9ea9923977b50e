"""Pixels to tokens, as learners write it."""

import torch
from torch import nn
from torch.nn import functional as F

from . import right, wrong

# --- 02.1 --------------------------------------------------------------------------------------------------------


@right("02.1")
def _(index, width, patch_size):
    per_row = width // patch_size
    y = index // per_row * patch_size
    x = index % per_row * patch_size
    return y, x, y + patch_size, x + patch_size


@right("02.1")
def _(index, width, patch_size):
    x = y = 0
    for _ in range(index):
        x += patch_size
        if x >= width:
            x, y = 0, y + patch_size
    return [y, x, y + patch_size, x + patch_size]


@wrong("02.1", "y and x swapped")
def _(index, width, patch_size):
    row, col = divmod(index, width // patch_size)
    return col * patch_size, row * patch_size, (col + 1) * patch_size, (row + 1) * patch_size


@wrong("02.1", "last pixel included")
def _(index, width, patch_size):
    row, col = divmod(index, width // patch_size)
    y, x = row * patch_size, col * patch_size
    return y, x, y + patch_size - 1, x + patch_size - 1


@wrong("02.1", "counted in patches")
def _(index, width, patch_size):
    row, col = divmod(index, width // patch_size)
    return row, col, row + 1, col + 1


@wrong("02.1", "row length in pixels")
def _(index, width, patch_size):
    y, x = index // width * patch_size, index % width * patch_size
    return y, x, y + patch_size, x + patch_size


@wrong("02.1", "row length is the patch size")
def _(index, width, patch_size):
    row, col = divmod(index, patch_size)
    return row * patch_size, col * patch_size, (row + 1) * patch_size, (col + 1) * patch_size


@wrong("02.1", "height and width")
def _(index, width, patch_size):
    row, col = divmod(index, width // patch_size)
    return row * patch_size, col * patch_size, patch_size, patch_size


@wrong("02.1", "structure")
def _(index, width, patch_size):
    row, col = divmod(index, width // patch_size)
    return row * patch_size, col * patch_size


# --- 02.2 --------------------------------------------------------------------------------------------------------


@right("02.2")
def _(x, patch_size):
    return F.unfold(x, kernel_size=patch_size, stride=patch_size).transpose(1, 2)


@right("02.2")
def _(x, patch_size):
    B, C, H, W = x.shape
    patches = []
    for top in range(0, H, patch_size):
        for left in range(0, W, patch_size):
            patches.append(x[:, :, top : top + patch_size, left : left + patch_size].flatten(1))
    return torch.stack(patches, dim=1)


@right("02.2")
def _(x, patch_size):
    x = x.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return torch.einsum("bcrsyx->brscyx", x).flatten(3).flatten(1, 2)


def cut(order):
    def function(x, p):
        B, C, H, W = x.shape
        x = x.view(B, C, H // p, p, W // p, p)
        return x.permute(*order).reshape(B, (H // p) * (W // p), C * p * p)

    return function


wrong("02.2", "columns first")(cut((0, 4, 2, 1, 3, 5)))
wrong("02.2", "channels last")(cut((0, 2, 4, 3, 5, 1)))
wrong("02.2", "patches turned")(cut((0, 2, 4, 1, 5, 3)))
wrong("02.2", "channels outside")(cut((0, 1, 2, 4, 3, 5)))
wrong("02.2", "only one axis cut")(cut((0, 2, 1, 3, 4, 5)))


@wrong("02.2", "reshaped only")
def _(x, patch_size):
    return x.reshape(len(x), -1, x.size(1) * patch_size**2)


@wrong("02.2", "patches last")
def _(x, patch_size):
    return F.unfold(x, patch_size, stride=patch_size)


@wrong("02.2", "columns first")
def _(x, patch_size):
    out = []
    for left in range(0, x.shape[3], patch_size):
        for top in range(0, x.shape[2], patch_size):
            out.append(x[:, :, top : top + patch_size, left : left + patch_size].reshape(len(x), -1))
    return torch.stack(out, 1)


@wrong("02.2", "not merged")
def _(x, patch_size):
    p = x.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return p.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


@wrong("02.2", "axes in another order")
def _(x, patch_size):
    return F.unfold(x, patch_size, stride=patch_size).permute(2, 0, 1)


# --- 02.3 --------------------------------------------------------------------------------------------------------


@right("02.3")
def _(P):
    plus, half = torch.ones(P, P), P // 2
    sides = torch.cat([-torch.ones(P, half), torch.ones(P, half)], dim=1)
    bands = sides.T
    grey = torch.stack([plus, sides * 1, bands])[:, None].expand(3, 3, P, P) / torch.tensor([3.0, 3, 3]).view(
        3, 1, 1, 1
    )
    grey = grey * torch.tensor([1.0, 2, 2]).view(3, 1, 1, 1)
    colour = torch.stack([plus, 0 * plus, -plus])[None]
    return torch.cat([grey, colour]) / P**2


@right("02.3")
def _(P):
    out = torch.empty(4, 3, P, P)
    for c in range(3):
        for y in range(P):
            for x in range(P):
                right, low = (1 if x >= P / 2 else -1), (1 if y >= P / 2 else -1)
                out[:, c, y, x] = torch.tensor([1 / 3, right * 2 / 3, low * 2 / 3, (1, 0, -1)[c]])
    return out / (P * P)


@right("02.3")
def _(P):  # as a parameter
    from paligemma.exercises.ch02 import filters

    return torch.nn.Parameter(filters(P))


def hand(P, brightness=1.0, across=1.0, down=1.0, colour=(1, 0, -1), mean=True, exchanged=False, channels=(1, 1, 1)):
    ramp = torch.tensor([-1.0] * (P // 2) + [1.0] * (P // 2))
    shares = torch.tensor(channels, dtype=torch.float32).view(3, 1, 1) / sum(channels)
    across, down = 2 * across * ramp.expand(P, P), 2 * down * ramp[:, None].expand(P, P)
    if exchanged:
        across, down = down, across
    weight = torch.stack([brightness * torch.ones(P, P) * shares, across * shares, down * shares,
                          torch.tensor(colour, dtype=torch.float32).view(3, 1, 1).expand(3, P, P)])  # fmt: skip
    return weight / P**2 if mean else weight


wrong("02.3", "left minus right")(lambda P: hand(P, across=-1))
wrong("02.3", "top minus bottom")(lambda P: hand(P, down=-1))
wrong("02.3", "both edges turned")(lambda P: hand(P, across=-1, down=-1))
wrong("02.3", "blue minus red")(lambda P: hand(P, colour=(-1, 0, 1)))
wrong("02.3", "red minus green")(lambda P: hand(P, colour=(1, -1, 0)))
wrong("02.3", "rows and columns exchanged")(lambda P: hand(P, exchanged=True))
wrong("02.3", "sums")(lambda P: hand(P, mean=False))
wrong("02.3", "one channel")(lambda P: hand(P, channels=(1, 0, 0)))
wrong("02.3", "one filter")(lambda P: hand(P, across=0.5))
wrong("02.3", "one filter")(lambda P: hand(P, brightness=3))
wrong("02.3", "shape")(lambda P: hand(P).permute(0, 2, 3, 1))
wrong("02.3", "shape")(lambda P: hand(P)[:3])
wrong("02.3", "shape")(lambda P: hand(4))
wrong("02.3", "type")(lambda P: hand(P).tolist())


# --- 02.4 --------------------------------------------------------------------------------------------------------


class Base(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_dim = config.hidden_size
        self.image_size = config.image_size
        self.patch_size = config.patch_size
        self.patch_embedding = nn.Conv2d(
            in_channels=config.num_channels, out_channels=self.embed_dim,
            kernel_size=self.patch_size, stride=self.patch_size, padding="valid")  # fmt: skip
        self.num_positions = (self.image_size // self.patch_size) ** 2
        self.position_embedding = nn.Embedding(self.num_positions, self.embed_dim)
        self.register_buffer("position_ids", torch.arange(self.num_positions).expand((1, -1)), persistent=False)

    def forward(self, pixel_values):
        x = self.patch_embedding(pixel_values)
        x = x.flatten(2).transpose(1, 2)
        return x + self.position_embedding(self.position_ids)


right("02.4")(Base)


@right("02.4")
class ByMatrix(Base):
    def forward(self, x):
        patches = F.unfold(x, self.patch_size, stride=self.patch_size).mT
        tokens = F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        return tokens.add_(self.position_embedding.weight[None])


@wrong("02.4", "positions forgotten")
class _(Base):
    def forward(self, x):
        return self.patch_embedding(x).flatten(2).transpose(1, 2)


@wrong("02.4", "positions multiplied")
class _(Base):
    def forward(self, x):
        return self.patch_embedding(x).flatten(2).transpose(1, 2) * self.position_embedding(self.position_ids)


@wrong("02.4", "positions appended")
class _(Base):
    def forward(self, x):
        tokens = self.patch_embedding(x).flatten(2).transpose(1, 2)
        positions = self.position_embedding(self.position_ids).repeat(len(x), 1, 1)
        return torch.cat([tokens, positions], -1)


@wrong("02.4", "reshaped instead of transposed")
class _(Base):
    def forward(self, x):
        x = self.patch_embedding(x)
        return x.view(x.size(0), -1, x.size(1)) + self.position_embedding(self.position_ids)


@wrong("02.4", "columns first")
class _(Base):
    def forward(self, x):
        x = self.patch_embedding(x).transpose(2, 3).flatten(2).transpose(1, 2)
        return x + self.position_embedding(self.position_ids)


@wrong("02.4", "one position for all")
class _(Base):
    def forward(self, x):
        x = self.patch_embedding(x).flatten(2).transpose(1, 2)
        return x + self.position_embedding(torch.zeros_like(self.position_ids))


@wrong("02.4", "no bias")
class _(Base):
    def forward(self, x):
        x = F.conv2d(x, self.patch_embedding.weight, stride=self.patch_size)
        return x.flatten(2).transpose(1, 2) + self.position_embedding(self.position_ids)


@wrong("02.4", "features before tokens")
class _(Base):
    def forward(self, x):
        return self.patch_embedding(x).flatten(2) + self.position_embedding(self.position_ids).transpose(1, 2)


@wrong("02.4", "weights do not fit")
class _(Base):
    def __init__(self, config):
        super().__init__(config)
        self.position_embedding = nn.Embedding(self.num_positions + 1, self.embed_dim)  # one for a class token


@wrong("02.4", "weights do not fit")
class _(Base):
    def __init__(self, config):
        super().__init__(config)
        self.positions = nn.Parameter(torch.zeros(self.num_positions, self.embed_dim))
        del self.position_embedding


@wrong("02.4", "raised")
class _(Base):
    def forward(self, x):
        return self.patch_embedding(x).flatten(2) + self.position_embedding(self.position_ids)


# --- 02.5 --------------------------------------------------------------------------------------------------------


def like(shape, *values):
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


NOTHING, ONE = torch.zeros(1), torch.ones(1, 1, 1, 1)
GOOD = {
    "columns_first": (like((1, 1, 2, 3), 1, 2, 3, 4, 5, 6), ONE, NOTHING, torch.zeros(6, 1)),
    "one_position": (torch.zeros(1, 1, 1, 2), ONE, NOTHING, like((2, 1), 0, 5)),
    "no_bias": (torch.zeros(1, 1, 1, 1), ONE, torch.ones(1), torch.zeros(1, 1)),
    "reshaped": (like((1, 1, 1, 2), 1, 2), like((2, 1, 1, 1), 1, -1), torch.zeros(2), torch.zeros(2, 2)),
    "filters_turned": (like((1, 1, 2, 2), 1, 2, 3, 4), like((1, 1, 2, 2), 0, 1, 0, 0), NOTHING, torch.zeros(1, 1)),
}
right("02.5")(lambda: dict(GOOD))
right("02.5")(lambda: GOOD | {"no_bias": (torch.zeros(2, 3, 4, 4), torch.ones(1, 3, 2, 2), 2 * torch.ones(1),
                                          torch.zeros(4, 1))})  # fmt: skip


def random_input(batch=1, rows=2, columns=2):
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=draw) for shape in
                 ((batch, 3, 4 * rows, 4 * columns), (5, 3, 4, 4), (5,), (rows * columns, 5)))  # fmt: skip


def instead(**changes):
    return lambda: GOOD | changes


wrong("02.5", "exposes others")(lambda: dict.fromkeys(GOOD, random_input()))
wrong("02.5", "exposes others")(instead(columns_first=random_input(2)))
wrong("02.5", "not exposed")(instead(columns_first=random_input(1, 1, 3)))
wrong("02.5", "not exposed")(instead(one_position=(torch.zeros(1, 1, 1, 1), ONE, NOTHING, torch.ones(1, 1))))
wrong("02.5", "not exposed")(instead(no_bias=(torch.zeros(1, 1, 1, 1), ONE, NOTHING, torch.zeros(1, 1))))
wrong("02.5", "exposes others")(instead(no_bias=(torch.zeros(1, 1, 1, 2), torch.zeros(2, 1, 1, 1), like((2,), 1, 2),
                                                 torch.zeros(2, 2))))  # fmt: skip
wrong("02.5", "not an input")(instead(no_bias=torch.zeros(1, 3, 8, 8)))
wrong("02.5", "not an input")(instead(no_bias=(torch.zeros(1, 1, 3, 3), torch.ones(1, 1, 2, 2), NOTHING,
                                               torch.zeros(1, 1))))  # fmt: skip
wrong("02.5", "not an input")(instead(no_bias=(torch.zeros(1, 1, 1, 1), ONE, NOTHING, torch.zeros(2, 1))))
wrong("02.5", "structure")(lambda: {"no_bias": GOOD["no_bias"]})
wrong("02.5", "type")(lambda: tuple(GOOD.values()))

# --- 02.6 --------------------------------------------------------------------------------------------------------

PANELS = {
    "A": "the picture mirrored",
    "B": "no positions",
    "C": "red and blue exchanged",
    "D": "tokens column by column",
    "E": "positions in reverse",
}


def exchanged(one, other):
    return lambda: PANELS | {one: PANELS[other], other: PANELS[one]}


right("02.6")(lambda: PANELS)
right("02.6")(lambda: dict(reversed(PANELS.items())))
for pair in ("AD", "BE", "CB", "DE", "AE"):
    wrong("02.6", "taken for another")(exchanged(*pair))
wrong("02.6", "not matched")(exchanged("A", "B"))
wrong("02.6", "a name twice")(lambda: dict.fromkeys("ABCDE", "no positions"))
wrong("02.6", "unknown name")(lambda: PANELS | {"A": "mirrored"})
wrong("02.6", "structure")(lambda: {panel.lower(): name for panel, name in PANELS.items()})
wrong("02.6", "no return")(lambda: None)
