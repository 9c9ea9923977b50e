"""Pixels to tokens, as learners write it."""

import torch
from torch import nn
from torch.nn import functional as F

from . import right, swap_bank, wrong

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
def _(x, weight, bias):
    patches = F.unfold(x, weight.shape[2:], stride=weight.shape[2])  # [B, C*P*P, N]
    return patches.transpose(1, 2) @ weight.flatten(1).T + bias


@right("02.3")
def _(x, weight, bias):
    P = weight.shape[-1]
    patches = x.unfold(2, P, P).unfold(3, P, P)
    return torch.einsum("bcrsyx,dcyx->brsd", patches, weight).flatten(1, 2) + bias


@right("02.3")
def _(x, weight, bias):
    P = weight.shape[-1]
    rows = [
        F.linear(x[:, :, t : t + P, s : s + P].flatten(1), weight.flatten(1), bias)
        for t in range(0, x.shape[2], P)
        for s in range(0, x.shape[3], P)
    ]
    return torch.stack(rows, dim=1)


@wrong("02.3", "no bias")
def _(x, weight, bias):
    return F.unfold(x, weight.shape[2:], stride=weight.shape[2]).transpose(1, 2) @ weight.flatten(1).T


@wrong("02.3", "features before tokens")
def _(x, weight, bias):
    return F.conv2d(x, weight, bias, stride=weight.shape[2]).flatten(2)


@wrong("02.3", "not flattened")
def _(x, weight, bias):
    return F.conv2d(x, weight, bias, stride=weight.shape[2])


@wrong("02.3", "overlapping patches")
def _(x, weight, bias):
    return F.conv2d(x, weight, bias).flatten(2).transpose(1, 2)


@wrong("02.3", "reshaped instead of transposed")
def _(x, weight, bias):
    y = F.conv2d(x, weight, bias, stride=weight.shape[2])
    return y.view(y.shape[0], -1, y.shape[1])


@wrong("02.3", "columns first")
def _(x, weight, bias):
    y = F.conv2d(x, weight, bias, stride=weight.shape[2])
    return y.transpose(2, 3).flatten(2).transpose(1, 2)


@wrong("02.3", "channels last")
def _(x, weight, bias):
    P = weight.shape[-1]
    patches = x.unfold(2, P, P).unfold(3, P, P).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    return F.linear(patches, weight.flatten(1), bias)


@wrong("02.3", "reshaped only")
def _(x, weight, bias):
    return F.linear(x.reshape(len(x), -1, weight[0].numel()), weight.flatten(1), bias)


@wrong("02.3", "weights reshaped")
def _(x, weight, bias):
    patches = F.unfold(x, weight.shape[2:], stride=weight.shape[2]).transpose(1, 2)
    return patches @ weight.view(-1, weight.shape[0]) + bias


# --- 02.4 and 02.5 -----------------------------------------------------------------------------------------------


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
right("02.5")(Base)


@right("02.4")
@right("02.5")
class ByMatrix(Base):
    def forward(self, x):
        patches = F.unfold(x, self.patch_size, stride=self.patch_size).mT
        tokens = F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        return tokens.add_(self.position_embedding.weight[None])


@wrong("02.4", "positions forgotten")
@wrong("02.5", "positions forgotten")
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
@wrong("02.5", "reshaped instead of transposed")
class _(Base):
    def forward(self, x):
        x = self.patch_embedding(x)
        return x.view(x.size(0), -1, x.size(1)) + self.position_embedding(self.position_ids)


@wrong("02.4", "columns first")
@wrong("02.5", "left: the order")
class _(Base):
    def forward(self, x):
        x = self.patch_embedding(x).transpose(2, 3).flatten(2).transpose(1, 2)
        return x + self.position_embedding(self.position_ids)


@wrong("02.4", "one position for all")
@wrong("02.5", "left: the places")
class _(Base):
    def forward(self, x):
        x = self.patch_embedding(x).flatten(2).transpose(1, 2)
        return x + self.position_embedding(torch.zeros_like(self.position_ids))


@wrong("02.4", "no bias")
@wrong("02.5", "left: a tensor")
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


@wrong("02.5", "3 left")
class AsPrinted(Base):
    def forward(self, x):
        grid = F.conv2d(x, self.patch_embedding.weight, stride=self.patch_size)
        tokens = grid.permute(0, 3, 2, 1).flatten(1, 2)
        return tokens + self.position_embedding.weight[:1]


@wrong("02.5", "2 left")
class _(Base):
    def forward(self, x):
        grid = self.patch_embedding(x)
        return grid.permute(0, 3, 2, 1).flatten(1, 2) + self.position_embedding.weight[:1]


@wrong("02.5", "2 left")
class _(Base):
    def forward(self, x):
        grid = F.conv2d(x, self.patch_embedding.weight, stride=self.patch_size)
        return grid.flatten(2).transpose(1, 2) + self.position_embedding.weight[0]


# --- 02.6 --------------------------------------------------------------------------------------------------------


class NoPositions(Base):
    def forward(self, x):
        return self.patch_embedding(x).flatten(2).transpose(1, 2)


swap_bank(
    "02.6",
    {"SiglipVisionEmbeddings": Base},
    other={"SiglipVisionEmbeddings": ByMatrix},
    broken={"SiglipVisionEmbeddings": NoPositions},
)
