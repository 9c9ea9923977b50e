"""RMSNorm, as learners write it."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import right, wrong

# --- 06.1 --------------------------------------------------------------------------------------------------------


@right("06.1")
def _(x, eps=1e-6):
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)


@right("06.1")
def _(x, eps=1e-6):
    return F.rms_norm(x, (x.shape[-1],), eps=eps)


@right("06.1")
def _(x, eps=1e-6):
    energy = torch.einsum("...d,...d->...", x, x) / x.size(-1)
    return x / torch.sqrt(energy + eps)[..., None]


@right("06.1")
def _(x, eps=1e-6):
    out = torch.empty_like(x).view(-1, x.shape[-1])
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        rows.append(row / ((row @ row) / len(row) + eps) ** 0.5)
    assert out.shape[0] == len(rows)
    return torch.stack(rows).reshape(x.shape)


@wrong("06.1", "mean over everything")
def _(x, eps=1e-6):
    rms = torch.sqrt(torch.mean(x**2) + eps)
    return x / rms


@wrong("06.1", "wrong axis")
def _(x, eps=1e-6):
    return x / torch.sqrt(torch.mean(x**2, dim=-2, keepdim=True) + eps)


@wrong("06.1", "wrong axis")
def _(x, eps=1e-6):
    return x * torch.rsqrt(x.pow(2).mean(dim=0, keepdim=True) + eps)


@wrong("06.1", "sum instead of mean")
def _(x, eps=1e-6):
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + eps)


@wrong("06.1", "sum instead of mean")
def _(x, eps=1e-6):
    return x / torch.sqrt(x.norm(dim=-1, keepdim=True) ** 2 + eps)


@wrong("06.1", "root forgotten")
def _(x, eps=1e-6):
    ms = x.pow(2).mean(-1, keepdim=True)
    return x / (ms + eps)


@wrong("06.1", "square of the mean")
def _(x, eps=1e-6):
    return x * torch.rsqrt(x.mean(-1, keepdim=True) ** 2 + eps)


@wrong("06.1", "mean of sizes")
def _(x, eps=1e-6):
    return x / (torch.mean(torch.abs(x), -1, True) + eps)


@wrong("06.1", "mean subtracted")
def _(x, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], eps=eps)


@wrong("06.1", "variance instead of mean square")
def _(x, eps=1e-6):
    return x / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + eps)


@wrong("06.1", "eps outside the root")
def _(x, eps=1e-6):
    return x / (torch.sqrt((x**2).mean(-1, keepdim=True)) + eps)


@wrong("06.1", "eps forgotten")
def _(x, eps=1e-6):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True))


@wrong("06.1", "eps not passed on")
def _(x, eps=1e-6):
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


@wrong("06.1", "multiplied")
def _(x, eps=1e-6):
    return x * torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)


@wrong("06.1", "axis dropped")
def _(x, eps=1e-6):
    return x / torch.sqrt(x.pow(2).mean(dim=-1) + eps)


@wrong("06.1", "input changed")
def _(x, eps=1e-6):
    x /= torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return x


@wrong("06.1", "no return")
def _(x, eps=1e-6):
    x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)


@wrong("06.1", "type")
def _(x, eps=1e-6):
    a = x.numpy()
    return a / np.sqrt((a**2).mean(-1, keepdims=True) + eps)


@wrong("06.1", "no gradient")
def _(x, eps=1e-6):
    a = x.detach()
    return a / torch.sqrt((a**2).mean(-1, keepdim=True) + eps)


@wrong("06.1", "gradient")
def _(x, eps=1e-6):
    return x / torch.sqrt((x.data**2).mean(-1, keepdim=True) + eps)


@wrong("06.1", "constant factor")
def _(x, eps=1e-6):
    return 2 * x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps)


@wrong("06.1", "raised")
def _(x, eps=1e-6):
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + epsilon)  # noqa: F821


# --- 06.2 --------------------------------------------------------------------------------------------------------


@right("06.2")
def _(x, kind, eps=1e-6):
    D = x.shape[-1]
    if kind == "batch":
        flat = x.reshape(-1, D)
        return F.batch_norm(flat, None, None, training=True, eps=eps).reshape(x.shape)
    if kind == "layer":
        return F.layer_norm(x, (D,), eps=eps)
    return F.rms_norm(x, (D,), eps=eps)


@right("06.2")
def _(x, kind, eps=1e-6):
    if kind == "rms":
        mean, square = 0.0, (x**2).mean(-1, keepdim=True)
    elif kind == "layer":
        mean = x.mean(-1, keepdim=True)
        square = x.var(-1, keepdim=True, unbiased=False)
    else:
        mean = x.mean(dim=[0, 1])
        square = x.var(dim=[0, 1], unbiased=False)
    return (x - mean) * torch.rsqrt(square + eps)


@right("06.2")
def _(x, kind, eps=1e-6):
    B, L, D = x.shape
    out = torch.zeros_like(x)
    if kind == "batch":
        for d in range(D):
            values = x[:, :, d]
            m = values.sum() / (B * L)
            out[:, :, d] = (values - m) / torch.sqrt(((values - m) ** 2).sum() / (B * L) + eps)
        return out
    for b in range(B):
        for t in range(L):
            token = x[b, t]
            if kind == "layer":
                token = token - token.mean()
            out[b, t] = token / torch.sqrt((token**2).mean() + eps)
    return out


def three(batch=lambda x: (x - x.mean((0, 1))) / torch.sqrt(x.var((0, 1), unbiased=False) + 1e-6),
          layer=lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6),
          rms=lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-6)):  # fmt: skip
    def norm(x, kind, eps=1e-6):
        return {"batch": batch, "layer": layer, "rms": rms}[kind](x)

    return norm


right("06.2")(three())
wrong("06.2", "batch and layer swapped")(three(
    batch=lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6),
    layer=lambda x: (x - x.mean((0, 1))) / torch.sqrt(x.var((0, 1), unbiased=False) + 1e-6)))  # fmt: skip
wrong("06.2", "batch norm over the rows only")(three(
    batch=lambda x: (x - x.mean(0)) / torch.sqrt(x.var(0, unbiased=False) + 1e-6)))  # fmt: skip
wrong("06.2", "batch norm over the places only")(three(
    batch=lambda x: F.instance_norm(x.transpose(1, 2), eps=1e-6).transpose(1, 2)))  # fmt: skip
wrong("06.2", "layer norm over the whole row")(three(layer=lambda x: F.layer_norm(x, x.shape[1:], eps=1e-6)))
wrong("06.2", "layer norm over the tokens")(three(
    layer=lambda x: F.layer_norm(x.transpose(1, 2), (x.shape[1],), eps=1e-6).transpose(1, 2)))  # fmt: skip
wrong("06.2", "one less in the variance")(three(
    layer=lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-6)))  # fmt: skip
wrong("06.2", "one less in the variance")(three(
    batch=lambda x: (x - x.mean((0, 1))) / torch.sqrt(x.var((0, 1)) + 1e-6),
    layer=lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-6)))  # fmt: skip
wrong("06.2", "mean subtracted in rms")(three(rms=lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6)))
wrong("06.2", "mean not subtracted")(three(layer=lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-6)))
wrong("06.2", "everything at once")(three(
    batch=lambda x: (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-6),
    layer=lambda x: (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-6)))  # fmt: skip
wrong("06.2", "eps outside the root")(three(
    batch=lambda x: (x - x.mean((0, 1))) / (x.std((0, 1), unbiased=False) + 1e-6),
    layer=lambda x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, unbiased=False) + 1e-6),
    rms=lambda x: x / (x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5 + 1e-6)))  # fmt: skip
wrong("06.2", "raised")(three(batch=lambda x: nn.BatchNorm1d(x.shape[-1])(x)))

# --- 06.3 --------------------------------------------------------------------------------------------------------


class Base(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        output = self._norm(x.float())
        output = output * (1.0 + self.weight.float())
        return output.type_as(x)


right("06.3")(Base)


@right("06.3")
class Functional(Base):
    def forward(self, x):
        wide = x.to(torch.float32)
        return F.rms_norm(wide, wide.shape[-1:], weight=self.weight.float() + 1, eps=self.eps).to(x.dtype)


@right("06.3")
class Doubles(Base):
    def forward(self, x):
        y = x.double()
        y = y / (y.square().sum(-1, keepdim=True) / y.shape[-1] + self.eps) ** 0.5
        y = y + y * self.weight
        return y.to(dtype=x.dtype)


@wrong("06.3", "weight instead of 1 + weight")
class _(Base):
    def forward(self, x):
        return (self._norm(x.float()) * self.weight).type_as(x)


@wrong("06.3", "weight unused")
class _(Base):
    def forward(self, x):
        return self._norm(x.float()).to(x.dtype)


@wrong("06.3", "weight added")
class _(Base):
    def forward(self, x):
        return (self._norm(x.float()) + self.weight).to(x.dtype)


@wrong("06.3", "bracket missing")
class _(Base):
    def forward(self, x):
        return (1.0 + self.weight * self._norm(x.float())).type_as(x)


@wrong("06.3", "mean subtracted")
class _(Base):
    def forward(self, x):
        y = F.layer_norm(x.float(), x.shape[-1:], eps=self.eps)
        return (y * (1 + self.weight)).type_as(x)


@wrong("06.3", "eps outside the root")
class _(Base):
    def _norm(self, x):
        return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)


@wrong("06.3", "eps not passed on")
class _(Base):
    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


@wrong("06.3", "wrong axis")
class _(Base):
    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-2, keepdim=True) + self.eps)


@wrong("06.3", "mean over everything")
class _(Base):
    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean() + self.eps)


@wrong("06.3", "root forgotten")
class _(Base):
    def _norm(self, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps)


@wrong("06.3", "sum instead of mean")
class _(Base):
    def _norm(self, x):
        return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + self.eps)


@wrong("06.3", "computed in half precision")
class _(Base):
    def forward(self, x):
        return (x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)).type_as(x)


@wrong("06.3", "not cast back")
class _(Base):
    def forward(self, x):
        return self._norm(x.float()) * (1.0 + self.weight)


@wrong("06.3", "cast before the weight")
class _(Base):
    def forward(self, x):
        return (self._norm(x.float()).type_as(x) * (1.0 + self.weight)).type_as(x)


@wrong("06.3", "starts at one")
class _(Base):
    def __init__(self, dim, eps=1e-6):
        super().__init__(dim, eps)
        self.weight = nn.Parameter(torch.ones(dim))


@wrong("06.3", "weights do not fit")
class _(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps, self.weight = eps, torch.zeros(dim)

    def forward(self, x):
        return x


@wrong("06.3", "weights do not fit")
class _(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return x


@wrong("06.3", "raised")
class _(nn.Module):
    def __init__(self, dim, eps=1e-6):
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return x


# --- 06.4 --------------------------------------------------------------------------------------------------------


def rows(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


PLAIN = torch.zeros(2)
GOOD = {
    "half_inside": (rows([1000.0, -1000.0], dtype=torch.float16), PLAIN.half()),
    "mean_subtracted": (rows([4.0, 5.0]), PLAIN),
    "eps_outside": (rows([2e-4, -2e-4]), PLAIN),
    "over_all": (rows([1.0, -1.0], [2.0, -2.0], [3.0, -3.0]), PLAIN),
    "weight_first": (rows([1.0, -1.0, 2.0, -2.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])),
}


def instead(**changes):
    return lambda: GOOD | changes


right("06.4")(instead())
right("06.4")(instead(over_all=(rows([10.0, -10.0], [0.0, 0.0]), PLAIN), eps_outside=(rows([1e-3, -1e-3]), -PLAIN)))

wrong("06.4", "exposes others")(lambda: dict.fromkeys(GOOD, (rows([500.0, 2.0], [1e-3, 0.0]).half(), torch.ones(2))))
wrong("06.4", "not exposed")(lambda: dict.fromkeys(GOOD, (rows([1.0, -1.0]), PLAIN)))
wrong("06.4", "exposes others")(instead(half_inside=(rows([1000.0, 900.0], dtype=torch.float16), PLAIN)))
wrong("06.4", "not exposed")(instead(half_inside=(rows([1000.0, -1000.0]), PLAIN)))
wrong("06.4", "not exposed")(instead(eps_outside=(rows([1.0, -1.0]), PLAIN)))
wrong("06.4", "exposes others")(instead(over_all=(rows([1.0, 2.0], [10.0, 20.0]), PLAIN)))
wrong("06.4", "not exposed")(instead(weight_first=(rows([1.0, -1.0]), PLAIN)))
wrong("06.4", "not an input")(instead(weight_first=(rows([1.0, -1.0]), torch.ones(3))))
wrong("06.4", "not an input")(instead(weight_first=rows([1.0, -1.0])))
wrong("06.4", "not an input")(instead(weight_first=(torch.tensor([[1, -1]]), PLAIN)))
wrong("06.4", "structure")(lambda: {})
wrong("06.4", "type")(lambda: [*GOOD.values()])

# --- 06.5 --------------------------------------------------------------------------------------------------------


class Centring(Base):
    """Layer norm's step in front of the norm."""

    def forward(self, x):
        return super().forward(x.float() - x.float().mean(-1, keepdim=True)).type_as(x)


right("06.5")(Centring)


@right("06.5")
class _(Base):
    def forward(self, x):
        y = F.layer_norm(x.float(), x.shape[-1:], eps=self.eps)
        return (y * (self.weight.float() + 1)).to(x.dtype)


wrong("06.5", "no mean subtracted")(Base)


@wrong("06.5", "size from before")
class _(Base):
    def forward(self, x):
        y = x.float()
        size = y.square().mean(-1, keepdim=True).add(self.eps).sqrt()
        return ((y - y.mean(-1, keepdim=True)) / size * (1 + self.weight)).type_as(x)


@wrong("06.5", "subtracted at the end")
class _(Base):
    def forward(self, x):
        y = super().forward(x).float()
        return (y - y.mean(dim=-1, keepdim=True)).type_as(x)


@wrong("06.5", "by one less")
class _(Base):
    def forward(self, x):
        var, mean = torch.var_mean(x.float(), -1, keepdim=True)
        return ((x.float() - mean) * torch.rsqrt(var + self.eps) * (1 + self.weight)).type_as(x)


@wrong("06.5", "weight instead of 1 + weight")
class _(Base):
    def forward(self, x):
        return (F.layer_norm(x.float(), x.shape[-1:], eps=self.eps) * self.weight).type_as(x)


@wrong("06.5", "mean over the tokens")
class _(Base):
    def forward(self, x):
        return super().forward(x - x.mean(dim=-2, keepdim=True))


@wrong("06.5", "subtracted too early")
class _(Base):
    def forward(self, x):
        x = x - x.mean(dim=-1, keepdim=True)
        return super().forward(x)


@wrong("06.5", "values")
class _(Base):  # everything in float16
    def forward(self, x):
        y = x - x.mean(-1, keepdim=True)
        return y / (y.square().mean(-1, keepdim=True) + self.eps).sqrt() * (1 + self.weight.type_as(x))


# --- Wrong ones that once passed ---------------------------------------------------------------------------------


@wrong("06.3", "weights do not fit")
class _(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.zeros(dim))

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * (1 + self.weight.float())).type_as(x)
