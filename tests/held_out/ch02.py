"""Held-out solutions of chapter 02."""

# ruff: noqa: E501
# fmt: off

from . import change, right, wrong

# --- 02.1 -------------------------------------------------------------------------------------------------------------

right("02.1", "counting", """
def patch_box(index, width, patch_size):
    y1 = x1 = 0
    for _ in range(index):
        x1 += patch_size
        if x1 >= width:
            x1, y1 = 0, y1 + patch_size
    return (y1, x1, y1 + patch_size, x1 + patch_size)
""")
right("02.1", "in pixels along one long strip", """
def patch_box(index, width, patch_size):
    start = index * patch_size
    left = start % width
    top = start // width * patch_size
    return top, left, top + patch_size, left + patch_size
""")
P21 = right("02.1", "as most write it", """
def patch_box(index, width, patch_size):
    per_row = width // patch_size
    row, column = divmod(index, per_row)
    y, x = row * patch_size, column * patch_size
    return y, x, y + patch_size, x + patch_size
""")
change("02.1", "x first", P21, ("return y, x, y + patch_size, x + patch_size", "return x, y, x + patch_size, y + patch_size"), says="your numbers are right with x first: boxes in this")
change("02.1", "counts from 1", P21, ("divmod(index, per_row)", "divmod(index - 1, per_row)"), says="your box is that of the token before: tokens count")
change("02.1", "divided by the patch size", P21, ("divmod(index, per_row)", "divmod(index, patch_size)"), says="you divide by the patch size: how many patches fit")
change("02.1", "last pixel included", P21, ("y + patch_size, x + patch_size", "y + patch_size - 1, x + patch_size - 1"), says="your box ends one pixel early: its end is the first")
change("02.1", "column by column", P21, ("row, column = divmod", "column, row = divmod"), says="your numbers are right with x first: boxes in this")
change("02.1", "in patches", P21, ("""y, x = row * patch_size, column * patch_size
    return y, x, y + patch_size, x + patch_size""", "return row, column, row + 1, column + 1"), says="your numbers count patches: they are to count pixels")
change("02.1", "height and width", P21, ("return y, x, y + patch_size, x + patch_size", "return y, x, patch_size, patch_size"), says="your last two numbers are the size of the box: they")
change("02.1", "eight per row", P21, ("width // patch_size", "8"), says="right for eight patches in a row: how many there")
change("02.1", "true division", P21, ("row, column = divmod(index, per_row)", """row = index / per_row
    column = index % per_row"""), says="your row is a fraction: `//` divides without a")
change("02.1", "row times width", P21, ("y, x = row * patch_size, column * patch_size", "y, x = row * width, column * patch_size"), says="the row is multiplied by the width of the picture:")

# --- 02.2 -------------------------------------------------------------------------------------------------------------

right("02.2", "loops over patches", """
def cut_patches(x, patch_size):
    rows = []
    for top in range(0, x.shape[2], patch_size):
        for left in range(0, x.shape[3], patch_size):
            rows.append(x[:, :, top : top + patch_size, left : left + patch_size].flatten(1))
    return torch.stack(rows, dim=1)
""")
right("02.2", "tensor.unfold twice", """
def cut_patches(x, patch_size):
    u = x.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return u.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
""")
right("02.2", "convolution with an identity", """
def cut_patches(x, patch_size):
    C, P = x.shape[1], patch_size
    eye = torch.eye(C * P * P, dtype=x.dtype).reshape(-1, C, P, P)
    return F.conv2d(x, eye, stride=P).flatten(2).mT
""")
right("02.2", "einsum on six axes, numpy", """
def cut_patches(x, patch_size):
    b, c, h, w = x.shape
    a = x.numpy().reshape(b, c, h // patch_size, patch_size, w // patch_size, patch_size)
    import numpy as np
    return torch.from_numpy(np.einsum("bcrysx->brscyx", a).reshape(b, -1, c * patch_size**2).copy())
""")
wrong("02.2", "a single reshape", """
def cut_patches(x, patch_size):
    B, C, H, W = x.shape
    N = (H // patch_size) * (W // patch_size)
    return x.reshape(B, N, C * patch_size * patch_size)
""", says="your numbers are those you get when the picture is")
P22 = right("02.2", "as most write it", """
def cut_patches(x, patch_size):
    B, C, H, W = x.shape
    P = patch_size
    x = x.reshape(B, C, H // P, P, W // P, P)
    x = x.permute(0, 2, 4, 1, 3, 5)
    return x.reshape(B, (H // P) * (W // P), C * P * P)
""")
change("02.2", "channels last inside a patch", P22, ("permute(0, 2, 4, 1, 3, 5)", "permute(0, 2, 4, 3, 5, 1)"), says="the numbers inside a patch are right, with the")
change("02.2", "y and x exchanged inside", P22, ("permute(0, 2, 4, 1, 3, 5)", "permute(0, 2, 4, 1, 5, 3)"), says="each patch lies on its diagonal: its rows and")
change("02.2", "patches column by column", P22, ("permute(0, 2, 4, 1, 3, 5)", "permute(0, 4, 2, 1, 3, 5)"), says="your patches run down the columns: tokens count row")
change("02.2", "one axis wrong", P22, ("permute(0, 2, 4, 1, 3, 5)", "permute(0, 2, 3, 1, 4, 5)"), says="the third axis of your six is y within the patch;")
change("02.2", "height and width exchanged in the shape", P22, ("B, C, H, W = x.shape", "B, C, W, H = x.shape"), says="height and width are taken for each other when the")
change("02.2", "P before the rows", P22, ("x.reshape(B, C, H // P, P, W // P, P)", "x.reshape(B, C, P, H // P, P, W // P)"), says="each side is cut as (place in the patch, patch)")
wrong("02.2", "unfold, not transposed but reshaped", """
def cut_patches(x, patch_size):
    u = F.unfold(x, kernel_size=patch_size, stride=patch_size)
    return u.reshape(u.shape[0], u.shape[2], u.shape[1])
""", says="F.unfold gives [B, C * P * P, N]: its last two axes")
wrong("02.2", "unfold without stride", """
def cut_patches(x, patch_size):
    return F.unfold(x, kernel_size=patch_size).transpose(1, 2)
""", says="there are more patches than fit side by side: yours")
wrong("02.2", "unfold, axes left", """
def cut_patches(x, patch_size):
    return F.unfold(x, kernel_size=patch_size, stride=patch_size)
""", says="features and patches are exchanged: that is what")
wrong("02.2", "last row and column of patches lost", """
def cut_patches(x, patch_size):
    B, C, H, W = x.shape
    P = patch_size
    out = []
    for i in range(0, H - P, P):
        for j in range(0, W - P, P):
            out.append(x[:, :, i : i + P, j : j + P].reshape(B, -1))
    return torch.stack(out, dim=1)
""", says="the last row and the last column of patches are")
wrong("02.2", "only the first picture", """
def cut_patches(x, patch_size):
    _, C, H, W = x.shape
    P = patch_size
    patches = [x[0, :, i : i + P, j : j + P].flatten() for i in range(0, H, P) for j in range(0, W, P)]
    return torch.stack(patches)[None]
""", says="only the first picture of the batch is cut")

# --- 02.3 -------------------------------------------------------------------------------------------------------------

right("02.3", "gradients of the four means", """
def filters(P):
    rows = []
    measures = [
        lambda p: p.mean(),
        lambda p: p[:, :, P // 2 :].mean() - p[:, :, : P // 2].mean(),
        lambda p: p[:, P // 2 :].mean() - p[:, : P // 2].mean(),
        lambda p: p[0].mean() - p[2].mean(),
    ]
    for measure in measures:
        patch = torch.zeros(3, P, P, requires_grad=True)
        (grad,) = torch.autograd.grad(measure(patch), patch)
        rows.append(grad)
    return torch.stack(rows)
""")
right("02.3", "outer products", """
def filters(P):
    flat = torch.full((P,), 1.0 / P)
    step = torch.tensor([-2.0 / P] * (P // 2) + [2.0 / P] * (P // 2))
    grey = torch.full((3,), 1 / 3)
    red_blue = torch.tensor([1.0, 0.0, -1.0])
    one = lambda c, y, x: torch.einsum("c,y,x->cyx", c, y, x)
    return torch.stack([one(grey, flat, flat), one(grey, flat, step), one(grey, step, flat), one(red_blue, flat, flat)])
""")
P23 = right("02.3", "as most write it", """
def filters(P):
    w = torch.zeros(4, 3, P, P)
    half = P // 2
    w[0] = 1 / (3 * P * P)
    w[1, :, :, half:] = 2 / (3 * P * P)
    w[1, :, :, :half] = -2 / (3 * P * P)
    w[2, :, half:, :] = 2 / (3 * P * P)
    w[2, :, :half, :] = -2 / (3 * P * P)
    w[3, 0] = 1 / (P * P)
    w[3, 2] = -1 / (P * P)
    return w
""")
change("02.3", "brightness is a sum", P23, ("w[0] = 1 / (3 * P * P)", "w[0] = 1"), says="its numbers are 48 times what they should be: a")
change("02.3", "brightness three times too large", P23, ("w[0] = 1 / (3 * P * P)", "w[0] = 1 / (P * P)"), says="its numbers are 3 times what they should be: a mean")
change("02.3", "left minus right", P23, ("""2 / (3 * P * P)
    w[1, :, :, :half] = -""", """-2 / (3 * P * P)
    w[1, :, :, :half] = """), says="the filter for the edge between left and right has")
wrong("02.3", "filters 1 and 2 exchanged", """
def filters(P):
    w = torch.zeros(4, 3, P, P)
    half = P // 2
    w[0] = 1 / (3 * P * P)
    w[1, :, half:, :] = 2 / (3 * P * P)
    w[1, :, :half, :] = -2 / (3 * P * P)
    w[2, :, :, half:] = 2 / (3 * P * P)
    w[2, :, :, :half] = -2 / (3 * P * P)
    w[3, 0] = 1 / (P * P)
    w[3, 2] = -1 / (P * P)
    return w
""", says="the second filter compares top and bottom, the")
wrong("02.3", "halves divided by the whole", """
def filters(P):
    w = torch.zeros(4, 3, P, P)
    half = P // 2
    w[0] = 1 / (3 * P * P)
    w[1, :, :, half:] = 1 / (3 * P * P)
    w[1, :, :, :half] = -1 / (3 * P * P)
    w[2, :, half:, :] = 1 / (3 * P * P)
    w[2, :, :half, :] = -1 / (3 * P * P)
    w[3, 0] = 1 / (P * P)
    w[3, 2] = -1 / (P * P)
    return w
""", says="its numbers are 0.5 times what they should be: a")
change("02.3", "left half not subtracted", P23, ("""    w[1, :, :, :half] = -2 / (3 * P * P)
""", ""), says="one of your differences has only one of its two")
change("02.3", "red minus green", P23, ("w[3, 2] =", "w[3, 1] ="), says="channel 1 is green, blue is channel 2")
change("02.3", "red minus blue divided by 3 P P", P23, ("""P * P)
    w[3, 2] = -1 / (""", """3 * P * P)
    w[3, 2] = -1 / (3 * """), says="its numbers are 0.333 times what they should be: a")
change("02.3", "half is 4", P23, ("half = P // 2", "half = 4"), says="the two halves meet at a fixed place: half of a")
change("02.3", "luminance", P23, ("w[0] = 1 / (3 * P * P)", "w[0, 0], w[0, 1], w[0, 2] = 0.299 / P**2, 0.587 / P**2, 0.114 / P**2"), says="the first filter weighs the colours as the eye")
change("02.3", "blue minus red", P23, ("""w[3, 0] = 1 / (P * P)
    w[3, 2] = -1 / (P * P)""", """w[3, 2] = 1 / (P * P)
    w[3, 0] = -1 / (P * P)"""), says="channel 0 is red and channel 2 is blue")
change("02.3", "channels last", P23, ("return w", "return w.permute(0, 2, 3, 1)"), says="four filters, each with a number for every channel,")
change("02.3", "top minus bottom", P23, ("""2 / (3 * P * P)
    w[2, :, :half, :] = -""", """-2 / (3 * P * P)
    w[2, :, :half, :] = """), says="the filter for the edge between top and bottom has")

# --- 02.4 -------------------------------------------------------------------------------------------------------------

right("02.4", "position ids in a buffer", """
class SiglipVisionEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.cfg = config
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size, padding="valid")
        self.position_embedding = nn.Embedding(config.num_image_tokens, config.hidden_size)
        self.register_buffer("position_ids", torch.arange(config.num_image_tokens).expand((1, -1)), persistent=False)

    def forward(self, pixel_values):
        grid = self.patch_embedding(pixel_values)
        b, d = grid.shape[:2]
        return grid.permute(0, 2, 3, 1).reshape(b, -1, d) + self.position_embedding(self.position_ids)
""")
right("02.4", "patches cut, then a matrix", """
class SiglipVisionEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.P = config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=self.P, stride=self.P)
        self.position_embedding = nn.Embedding(config.num_image_tokens, config.hidden_size)

    def forward(self, pixel_values):
        patches = F.unfold(pixel_values, self.P, stride=self.P)
        tokens = torch.einsum("bkn,dk->bnd", patches, self.patch_embedding.weight.flatten(1))
        tokens = tokens + self.patch_embedding.bias
        tokens += self.position_embedding(torch.arange(tokens.shape[1], device=tokens.device))
        return tokens
""")
P24 = right("02.4", "as most write it", """
class SiglipVisionEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Embedding(config.num_image_tokens, config.hidden_size)

    def forward(self, pixel_values):
        x = self.patch_embedding(pixel_values)
        x = x.flatten(2).transpose(1, 2)
        return x + self.position_embedding.weight
""")
change("02.4", "stride 1", P24, ("stride=config.patch_size)", "stride=1)"), says="there are more tokens than patches: the convolution")
change("02.4", "no bias", P24, ("stride=config.patch_size)", "stride=config.patch_size, bias=False)"), says="parameter `patch_embedding.bias` [6] is missing")
wrong("02.4", "other names", """
class SiglipVisionEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch_embed = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)
        self.pos_embed = nn.Embedding(config.num_image_tokens, config.hidden_size)

    def forward(self, pixel_values):
        x = self.patch_embed(pixel_values)
        x = x.flatten(2).transpose(1, 2)
        return x + self.pos_embed.weight
""", says="yours has a parameter `patch_embed.weight` [6, 3,")
change("02.4", "reshape instead of transpose", P24, ("x = x.flatten(2).transpose(1, 2)", "x = x.reshape(x.shape[0], -1, x.shape[1])"), says="the features are right and lie in the wrong tokens:")
change("02.4", "positions not added", P24, ("return x + self.position_embedding.weight", "return x"), says="your numbers are those you get without the")
change("02.4", "one position for all", P24, ("self.position_embedding.weight", "self.position_embedding.weight[0]"), says="every token gets the vector of place 0")
change("02.4", "column by column", P24, ("x = x.flatten(2).transpose(1, 2)", "x = x.transpose(2, 3).flatten(2).transpose(1, 2)"), says="your tokens run down the columns: they count row by")
change("02.4", "positions from the end", P24, ("return x + self.position_embedding.weight", "return x + self.position_embedding.weight.flip(0)"), says="the positions count from the end")
change("02.4", "a row for a class token", P24, ("nn.Embedding(config.num_image_tokens, config.hidden_size)", "nn.Embedding(config.num_image_tokens + 1, config.hidden_size)"), says="`position_embedding.weight` has shape [10, 6],")
change("02.4", "scaled by sqrt(D)", P24, ("return x + self.position_embedding.weight", "return (x + self.position_embedding.weight) * x.shape[-1] ** 0.5"), says="that is the square root of D")
change("02.4", "three channels", P24, ("nn.Conv2d(config.num_channels,", "nn.Conv2d(3,"), says="`patch_embedding.weight` has shape [10, 3, 5, 5],")
change("02.4", "Parameter, .weight of it", P24, ("nn.Embedding(config.num_image_tokens, config.hidden_size)", "nn.Parameter(torch.zeros(config.num_image_tokens, config.hidden_size))"), says="yours has a parameter `position_embedding` [9, 6]")
change("02.4", "relu", P24, ("x = self.patch_embedding(pixel_values)", "x = F.relu(self.patch_embedding(pixel_values))"), says="nothing is below zero before the positions are")
wrong("02.4", "dropout left in", """
class SiglipVisionEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)
        self.dropout = nn.Dropout(0.1)
        self.position_embedding = nn.Embedding(config.num_image_tokens, config.hidden_size)

    def forward(self, pixel_values):
        x = self.patch_embedding(pixel_values)
        x = x.flatten(2).transpose(1, 2)
        return self.dropout(x + self.position_embedding.weight)
""", says="what differs between the two: a dropout that the")
change("02.4", "a position for each picture", P24, ("self.position_embedding.weight", "self.position_embedding(torch.arange(pixel_values.shape[0]))[:, None]"), says="all tokens of a picture get the vector whose place")
change("02.4", "picture on its side", P24, ("x = self.patch_embedding(pixel_values)", "x = self.patch_embedding(pixel_values.transpose(2, 3))"), says="height and width of the picture are exchanged")

# --- 02.5 -------------------------------------------------------------------------------------------------------------

P25 = right("02.5", "as most write it", """
def exposing():
    z = torch.zeros
    return {
        "columns_first": (torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]), torch.ones(1, 1, 1, 1), z(1), z(4, 1)),
        "one_position": (z(1, 1, 1, 2), z(1, 1, 1, 1), z(1), torch.tensor([[0.0], [1.0]])),
        "no_bias": (z(1, 1, 1, 1), z(1, 1, 1, 1), torch.ones(1), z(1, 1)),
        "reshaped": (torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([1.0, 10.0]).reshape(2, 1, 1, 1), z(2), z(2, 2)),
        "filters_turned": (torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]), z(1), z(1, 1)),
    }
""")
change("02.5", "equal positions", P25, ("z(1), torch.tensor([[0.0], [1.0]])", "z(1), torch.tensor([[1.0], [1.0]])"), says="On your input for one_position, one_position gives what the")
change("02.5", "D = 1", P25, ('"reshaped": (torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([1.0, 10.0]).reshape(2, 1, 1, 1), z(2), z(2, 2))', '"reshaped": (torch.tensor([[[[1.0, 2.0]]]]), torch.ones(1, 1, 1, 1), z(1), z(2, 1))'), says="On your input for reshaped, reshaped gives what the right")
change("02.5", "random input", P25, ('"columns_first": (torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]), torch.ones(1, 1, 1, 1), z(1), z(4, 1))', '"columns_first": (torch.randn(1, 3, 4, 4), torch.randn(5, 3, 2, 2), torch.randn(5), torch.randn(4, 5))'), says="Your input for columns_first exposes it, and one_position,")
change("02.5", "symmetric picture", P25, ('"columns_first": (torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]),', '"columns_first": (torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]]),'), says="On your input for columns_first, columns_first gives what the")
change("02.5", "too many positions", P25, ("""z(1), z(1, 1)),
    }""", """z(1), z(4, 1)),
    }"""), says="filters_turned: bias [1] and positions [4, 1],")
change("02.5", "bias of zero", P25, ("torch.ones(1), z(1, 1)),", "torch.zeros(1), z(1, 1)),"), says="On your input for no_bias, no_bias gives what the right version")

# --- 02.6 -------------------------------------------------------------------------------------------------------------

right("02.6", "plain", """
def read_rows():
    return {
        "A": "the picture mirrored",
        "B": "no positions",
        "C": "red and blue exchanged",
        "D": "tokens column by column",
        "E": "positions in reverse",
    }
""")
wrong("02.6", "A and D exchanged", """
def read_rows():
    return {
        "A": "tokens column by column",
        "B": "no positions",
        "C": "red and blue exchanged",
        "D": "the picture mirrored",
        "E": "positions in reverse",
    }
""", says="'tokens column by column' and another are")
wrong("02.6", "B and E exchanged", """
def read_rows():
    return {
        "A": "the picture mirrored",
        "B": "positions in reverse",
        "C": "red and blue exchanged",
        "D": "tokens column by column",
        "E": "no positions",
    }
""", says="'positions in reverse' and another are exchanged:")
wrong("02.6", "small letters", """
def read_rows():
    return {
        "a": "the picture mirrored",
        "b": "no positions",
        "c": "red and blue exchanged",
        "d": "tokens column by column",
        "e": "positions in reverse",
    }
""", says="the rows are ['a', 'b', 'c', 'd', 'e'], expected")
