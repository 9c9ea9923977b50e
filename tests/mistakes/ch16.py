"""Solutions of chapter 16's exercises, right and wrong."""

import statistics

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import right, with_faults, wrong

# --- 16.1 --------------------------------------------------------------------------------------------------------


@right("16.1")
def _(config, L):
    D, d = config.hidden_size, config.head_dim
    H, H_kv = config.num_attention_heads, config.num_key_value_heads
    attention = D * H * d + 2 * D * H_kv * d + H * d * D
    mlp = 3 * D * config.intermediate_size
    layer = 2 * L * (attention + mlp) + 4 * L**2 * H * d
    return config.num_hidden_layers * layer + 2 * D * config.vocab_size


@right("16.1")
def _(config, L):
    def linear(tokens, d_in, d_out):
        return 2 * tokens * d_in * d_out

    D, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    total = 0
    for _ in range(config.num_hidden_layers):
        total += linear(L, D, heads) + linear(L, D, shared) * 2 + linear(L, heads, D)
        total += config.num_attention_heads * (linear(L, config.head_dim, L) + linear(L, L, config.head_dim))
        total += 2 * linear(L, D, config.intermediate_size) + linear(L, config.intermediate_size, D)
    return float(total + linear(1, D, config.vocab_size))


def my_flops(c, L, two=2, kv=None, mlp=3, out=True, inside=True, head=1, layers=None, see=None, dim=True):
    D, HD, KD = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    KD = HD if kv == "query" else KD
    per_token = D * HD + 2 * D * KD + (HD * D if out else 0) + mlp * D * c.intermediate_size
    pairs = L * L if see is None else see(L)
    layer = L * per_token + (2 * pairs * (HD if dim else c.num_attention_heads) if inside else 0)
    return two * ((layers or c.num_hidden_layers) * layer + head * D * c.vocab_size)


right("16.1")(my_flops)
wrong("16.1", "factor 2 forgotten")(lambda c, L: my_flops(c, L, two=1))
wrong("16.1", "GQA heads counted as query heads")(lambda c, L: my_flops(c, L, kv="query"))
wrong("16.1", "matrix missing in the MLP")(lambda c, L: my_flops(c, L, mlp=2))
wrong("16.1", "output projection missing")(lambda c, L: my_flops(c, L, out=False))
wrong("16.1", "attention itself missing")(lambda c, L: my_flops(c, L, inside=False))
wrong("16.1", "attention linear in L")(lambda c, L: my_flops(c, L, see=lambda L: L))
wrong("16.1", "half of the attention")(lambda c, L: my_flops(c, L, see=lambda L: L * L / 2))
wrong("16.1", "head size forgotten")(lambda c, L: my_flops(c, L, dim=False))
wrong("16.1", "head at every place")(lambda c, L: my_flops(c, L, head=L))
wrong("16.1", "head missing")(lambda c, L: my_flops(c, L, head=0))
wrong("16.1", "one layer")(lambda c, L: my_flops(c, L, layers=1))
wrong("16.1", "no return")(lambda c, L: print(my_flops(c, L), file=None) if L < 0 else None)


@wrong("16.1", "query heads counted as GQA heads")
def _(config, L):
    right_count = my_flops(config, L)
    missing = 4 * L * L * (config.num_attention_heads - config.num_key_value_heads) * config.head_dim
    return right_count - config.num_hidden_layers * missing


@wrong("16.1", "raised")
def _(config, L):
    return 2 * L * config.hidden_size * config.num_heads * config.head_dim


# --- 16.2 --------------------------------------------------------------------------------------------------------


@right("16.2")
def _(parameters, bits, config, rows, length, cache_bits=16):
    weights = parameters * bits // 8
    one = torch.zeros(config.num_key_value_heads, config.head_dim).numel()
    keys = rows * length * config.num_hidden_layers * one * (cache_bits // 8)
    values = keys
    return weights + keys + values


@right("16.2")
def _(parameters, bits, config, rows, length, cache_bits=16):
    total = parameters * bits
    for _ in range(config.num_hidden_layers):
        total += 2 * np.prod([rows, config.num_key_value_heads, length, config.head_dim]) * cache_bits
    return total / 8


def my_bytes(p, bits, c, rows, length, cache_bits=16, heads=None, both=2, per_row=False, one=False, cb=None, n=True):
    weights = p * bits / 8 * (rows if per_row else 1)
    cache = both * c.num_hidden_layers * (heads or c.num_key_value_heads) * c.head_dim
    return weights + cache * (1 if one else rows) * (length if n else 1) * (cb or cache_bits) / 8


right("16.2")(my_bytes)
wrong("16.2", "one cache missing")(lambda *a: my_bytes(*a, both=1))
wrong("16.2", "GQA heads counted as query heads")(lambda *a: my_bytes(*a, heads=a[2].num_attention_heads))
wrong("16.2", "one head only")(lambda *a: my_bytes(*a, heads=1))
wrong("16.2", "weights read for each row")(lambda *a: my_bytes(*a, per_row=True))
wrong("16.2", "cache of one row")(lambda *a: my_bytes(*a, one=True))
wrong("16.2", "length forgotten")(lambda *a: my_bytes(*a, n=False))
wrong("16.2", "cache in the weights' bits")(lambda *a: my_bytes(*a, cb=a[1]))
wrong("16.2", "cache_bits unused")(lambda *a: my_bytes(*a, cb=16))
wrong("16.2", "cache forgotten")(lambda p, bits, c, rows, length, cache_bits=16: p * bits / 8)
wrong("16.2", "bits counted as bytes")(lambda *a: 8 * my_bytes(*a))


@wrong("16.2", "bits counted as bytes")
def _(parameters, bits, config, rows, length, cache_bits=16):
    kv = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * length * rows
    return parameters * bits + kv * cache_bits // 8


@wrong("16.2", "width instead of heads")
def _(parameters, bits, config, rows, length, cache_bits=16):
    kv = 2 * rows * length * config.num_hidden_layers * config.hidden_size
    return parameters * bits / 8 + kv * cache_bits / 8


@wrong("16.2", "one layer")
def _(parameters, bits, config, rows, length, cache_bits=16):
    keys = rows * config.num_key_value_heads * length * config.head_dim
    return (parameters * bits + 2 * keys * cache_bits) / 8


# --- 16.3 --------------------------------------------------------------------------------------------------------


@right("16.3")
def _(rows, flops, read, compute, bandwidth):
    intensity = flops / read
    attainable = min(compute, intensity * bandwidth)
    return rows * attainable / flops, "memory" if intensity < compute / bandwidth else "compute"


@right("16.3")
def _(rows, flops, read, compute, bandwidth):
    rates = {"compute": rows * compute / flops, "memory": rows * bandwidth / read}
    limit = min(rates, key=rates.get)
    return rates[limit], limit


@wrong("16.3", "times added")
def _(rows, flops, read, compute, bandwidth):
    a, b = flops / compute, read / bandwidth
    return rows / (a + b), "compute" if a > b else "memory"


@wrong("16.3", "the faster one decides")
def _(rows, flops, read, compute, bandwidth):
    a, b = rows * compute / flops, rows * bandwidth / read
    return max(a, b), "compute" if a < b else "memory"


@wrong("16.3", "the faster one decides")
def _(rows, flops, read, compute, bandwidth):
    rates = {"compute": rows * compute / flops, "memory": rows * bandwidth / read}
    limit = max(rates, key=rates.get)
    return rates[limit], limit


@wrong("16.3", "memory only")
def _(rows, flops, read, compute, bandwidth):
    return rows * bandwidth / read, "memory"


@wrong("16.3", "arithmetic only")
def _(rows, flops, read, compute, bandwidth):
    return rows / (flops / compute), "compute"


@wrong("16.3", "rows forgotten")
def _(rows, flops, read, compute, bandwidth):
    a, b = flops / compute, read / bandwidth
    return 1 / max(a, b), "compute" if a > b else "memory"


@wrong("16.3", "names swapped")
def _(rows, flops, read, compute, bandwidth):
    intensity, corner = flops / read, compute / bandwidth
    rate = rows / max(flops / compute, read / bandwidth)
    return rate, "memory" if intensity > corner else "compute"


@wrong("16.3", "seconds instead of tokens a second")
def _(rows, flops, read, compute, bandwidth):
    a, b = flops / compute, read / bandwidth
    return max(a, b), "compute" if a > b else "memory"


@wrong("16.3", "FLOPs instead of tokens a second")
def _(rows, flops, read, compute, bandwidth):
    a, b = compute, bandwidth * flops / read
    return min(a, b), "compute" if a < b else "memory"


@wrong("16.3", "type")
def _(rows, flops, read, compute, bandwidth):
    return rows / max(flops / compute, read / bandwidth)


# --- 16.4 --------------------------------------------------------------------------------------------------------


@right("16.4")
def _(work, make_input, wait, clock, rounds):
    seconds = []
    for count in range(rounds + 1):
        x = make_input()
        wait()
        start = clock()
        work(x)
        wait()
        if count:
            seconds.append(clock() - start)
    return sorted(seconds)[rounds // 2]


@right("16.4")
def _(work, make_input, wait, clock, rounds):
    inputs = [make_input() for _ in range(rounds + 1)]
    times = np.zeros(rounds + 1)
    for i, x in enumerate(inputs):
        start = clock()
        work(x)
        wait()
        times[i] = clock() - start
    return float(np.median(times[1:]))


def timed(faults):
    """The listing, with these faults left in."""

    def function(work, make_input, wait, clock, rounds):
        times = []
        if "f" not in faults:
            work(make_input())
            wait()
        for _ in range(rounds):
            x = None if "i" in faults else make_input()
            t0 = clock()
            work(x if x is not None else make_input())
            if "w" not in faults:
                wait()
            times.append(clock() - t0)
        return sum(times) / len(times) if "m" in faults else statistics.median(times)

    return function


with_faults("16.4", timed, {"f": "first call counted", "w": "not waited for", "i": "input timed", "m": "mean"})


@wrong("16.4", "first call not waited for")
def _(work, make_input, wait, clock, rounds):
    work(make_input())
    times = []
    for _ in range(rounds):
        x = make_input()
        t0 = clock()
        work(x)
        wait()
        times.append(clock() - t0)
    return statistics.median(times)


@wrong("16.4", "one time for all")
def _(work, make_input, wait, clock, rounds):
    work(make_input())
    wait()
    xs = [make_input() for _ in range(rounds)]
    t0 = clock()
    for x in xs:
        work(x)
    wait()
    return (clock() - t0) / rounds


def with_average(average):
    def function(work, make_input, wait, clock, rounds):
        work(make_input())
        wait()
        times = []
        for _ in range(rounds):
            x = make_input()
            begin = clock()
            work(x)
            wait()
            end = clock()
            times.append(end - begin)
        return average(times)

    return function


right("16.4")(with_average(lambda times: torch.tensor(times, dtype=torch.float64).median().item()))
wrong("16.4", "the best instead of the median")(with_average(min))
wrong("16.4", "the worst instead of the median")(with_average(max))
wrong("16.4", "not sorted")(with_average(lambda times: times[len(times) // 2]))
wrong("16.4", "sum")(with_average(sum))
wrong("16.4", "every time")(with_average(lambda times: times))
wrong("16.4", "mean")(with_average(statistics.fmean))
wrong("16.4", "no return")(with_average(lambda times: None))

# --- 16.5 --------------------------------------------------------------------------------------------------------


@right("16.5")
def _(weight):
    wide = weight.to(torch.float32)
    scale = torch.maximum(wide.amax(dim=1), -wide.amin(dim=1)) / 127
    step = torch.where(scale == 0, torch.ones_like(scale), scale)
    return torch.round(wide / step.unsqueeze(1)).to(torch.int8), scale


@right("16.5")
def _(weight):
    rows, scales = [], []
    for row in weight:
        row = row.float()
        largest = row.abs().max()
        scales.append(largest / 127)
        rows.append(torch.zeros(len(row), dtype=torch.int8) if largest == 0 else (row / scales[-1]).round().char())
    return torch.stack(rows), torch.stack(scales)


@right("16.5")
def _(weight):
    array = weight.float().numpy()
    scale = (np.abs(array).max(axis=1) / np.float32(127)).astype(np.float32)
    whole = np.rint(array / np.maximum(scale, np.float32(1e-30))[:, None]).astype(np.int8)
    return torch.from_numpy(whole), torch.from_numpy(scale)


@right("16.5")
def _(weight):
    largest = weight.float().abs().amax(dim=1, keepdim=True)
    whole = torch.where(largest > 0, weight.float() * (127 / largest), 0.0).round()
    return whole.to(torch.int8), largest[:, 0] / 127


@right("16.5")
def _(weight):
    largest = weight.float().norm(p=float("inf"), dim=1)
    return (weight.double() / largest.clamp(min=1e-20)[:, None] * 127 + 0.5).floor().to(torch.int8), largest / 127


def my_rows(w, reduce=lambda w: w.abs().amax(1), most=127, whole=torch.round, wide=True, lowest=-127):
    w = w.float() if wide else w
    scale = reduce(w) / most
    return whole(w / scale.clamp(min=1e-20)[:, None]).clamp(lowest, 127).to(torch.int8), scale


right("16.5")(my_rows)
wrong("16.5", "max without abs")(lambda w: my_rows(w, lambda w: w.amax(1)))
wrong("16.5", "size after the maximum")(lambda w: my_rows(w, lambda w: w.amax(1).abs()))
wrong("16.5", "one scale for all")(lambda w: my_rows(w, lambda w: w.abs().max().expand(len(w))))
wrong("16.5", "rounding by truncation")(lambda w: my_rows(w, whole=lambda y: y))
wrong("16.5", "always rounded down")(lambda w: my_rows(w, whole=torch.floor))
wrong("16.5", "range not symmetric")(lambda w: my_rows(w, most=128))
wrong("16.5", "range not symmetric")(lambda w: my_rows(w, most=128, lowest=-128))
wrong("16.5", "half of the range")(lambda w: my_rows(w, most=255))
wrong("16.5", "half of the range")(lambda w: my_rows(w, most=127.5))
wrong("16.5", "computed in half precision")(lambda w: my_rows(w, wide=False))


@wrong("16.5", "max without abs")
def _(weight):
    w = weight.float()
    scale = w.max(dim=1).values / 127
    return (w / scale[:, None]).round().to(torch.int8), scale


@wrong("16.5", "one scale for all")
def _(weight):
    w = weight.float()
    scale = w.abs().max() / 127
    return (w / scale).round().to(torch.int8), scale.repeat(w.shape[0])


@wrong("16.5", "scale for each column")
def _(weight):
    w = weight.float()
    scale = w.abs().amax(dim=0) / 127
    return (w / scale.clamp(min=1e-30)).round().to(torch.int8), scale


@wrong("16.5", "scale upside down")
def _(weight):
    w = weight.float()
    factor = 127 / w.abs().amax(dim=1)
    return (w * factor.clamp(max=1e30)[:, None]).round().to(torch.int8), factor


@wrong("16.5", "row of zeros")
def _(weight):
    w = weight.float()
    scale = w.abs().amax(dim=1) / 127
    scale[scale == 0] = 1.0
    return (w / scale[:, None]).round().to(torch.int8), scale


@wrong("16.5", "not int8")
def _(weight):
    w = weight.float()
    scale = w.abs().amax(dim=1) / 127
    return (w / scale.clamp(min=1e-30)[:, None]).round(), scale


@wrong("16.5", "axis kept")
def _(weight):
    w = weight.float()
    scale = w.abs().amax(dim=1, keepdim=True) / 127
    return (w / scale.clamp(min=1e-30)).round().to(torch.int8), scale


@wrong("16.5", "order of the results")
def _(weight):
    whole, scale = my_rows(weight)
    return scale, whole


@wrong("16.5", "raised")
def _(weight):
    scale = weight.float().abs().amax(dim=1) / 127
    return (weight / scale).round().to(torch.int8), scale


# --- 16.6 --------------------------------------------------------------------------------------------------------


class Mine(nn.Module):
    def __init__(self, numbers, scale, bias=None):
        super().__init__()
        self.register_buffer("numbers", numbers)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x):
        y = F.linear(x.float(), self.numbers.float()) * self.scale
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype)


right("16.6")(Mine)


@right("16.6")
class _(Mine):
    def forward(self, x):
        weight = self.numbers * self.scale[:, None]
        return F.linear(x.float(), weight, self.bias).type_as(x)


@right("16.6")
class _(nn.Module):
    def __init__(self, numbers, scale, bias=None):
        super().__init__()
        self.numbers = nn.Buffer(numbers)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x):
        y = torch.einsum("...k,rk->...r", x.float(), self.numbers.to(torch.float32))
        y = torch.mul(y, self.scale)
        return (y if self.bias is None else torch.add(y, self.bias)).to(dtype=x.dtype)


@wrong("16.6", "scale forgotten")
class _(Mine):
    def forward(self, x):
        return F.linear(x.float(), self.numbers.float(), self.bias).to(x.dtype)


@wrong("16.6", "divided by the scale")
class _(Mine):
    def forward(self, x):
        y = x.float() @ self.numbers.float().T / self.scale
        return (y + self.bias if self.bias is not None else y).to(x.dtype)


@wrong("16.6", "bias forgotten")
class _(Mine):
    def forward(self, x):
        return F.linear(x.float(), self.numbers * self.scale[:, None]).to(x.dtype)


@wrong("16.6", "bias scaled")
class _(Mine):
    def forward(self, x):
        return (F.linear(x.float(), self.numbers.float(), self.bias) * self.scale).to(x.dtype)


@wrong("16.6", "not cast back")
class _(Mine):
    def forward(self, x):
        return F.linear(x.float(), self.numbers * self.scale[:, None], self.bias)


@wrong("16.6", "dequantised on the wrong axis")
class _(Mine):
    def forward(self, x):
        weight = self.numbers.float() * self.scale[None, :]
        y = x.float() @ weight.T
        return (y if self.bias is None else y + self.bias).to(x.dtype)


@wrong("16.6", "input made whole")
class _(Mine):
    def forward(self, x):
        y = (x.char().float() @ self.numbers.float().T) * self.scale
        return (y if self.bias is None else y + self.bias).to(x.dtype)


@wrong("16.6", "matrix not transposed")
class _(Mine):
    def forward(self, x):
        y = x.float() @ self.numbers.float() * self.scale
        return (y if self.bias is None else y + self.bias).to(x.dtype)


@wrong("16.6", "int8 times float")
class _(Mine):
    def forward(self, x):
        return F.linear(x, self.numbers) * self.scale


@wrong("16.6", "wide copy kept")
class _(nn.Module):
    def __init__(self, numbers, scale, bias=None):
        super().__init__()
        self.weight = numbers.float() * scale[:, None]
        self.bias = bias

    def forward(self, x):
        return F.linear(x.float(), self.weight, self.bias).to(x.dtype)


@wrong("16.6", "not registered")
class _(nn.Module):
    def __init__(self, numbers, scale, bias=None):
        super().__init__()
        self.numbers, self.scale, self.bias = numbers, scale, bias

    def forward(self, x):
        y = F.linear(x.float(), self.numbers.float()) * self.scale
        return (y if self.bias is None else y + self.bias).to(x.dtype)


@wrong("16.6", "bias always wanted")
class _(Mine):
    def forward(self, x):
        y = F.linear(x.float(), self.numbers.float()) * self.scale + self.bias
        return y.to(x.dtype)


@wrong("16.6", "raised")
class _(nn.Module):
    def __init__(self, numbers, scale, bias=None):
        super().__init__()
        self.numbers, self.scale = nn.Parameter(numbers), scale

    def forward(self, x):
        return x @ self.numbers.T


# --- 16.7 --------------------------------------------------------------------------------------------------------


def points(**changed):
    names = ("one row, 16 bits", "one row, 8 bits", "64 rows, 16 bits", "64 rows, one thread of eight")
    return lambda: {**dict(zip("ABCDE", (*names, "prompt of 272 tokens"))), **changed}


right("16.7")(points())
right("16.7")(lambda: {name: points()()[name] for name in "EDCBA"})
wrong("16.7", "taken for another")(points(A="one row, 8 bits", B="one row, 16 bits"))
wrong("16.7", "taken for another")(points(C="64 rows, one thread of eight", D="64 rows, 16 bits"))
wrong("16.7", "taken for another")(points(C="prompt of 272 tokens", E="64 rows, 16 bits"))
wrong("16.7", "a name twice")(points(D="64 rows, 16 bits"))
wrong("16.7", "unknown name")(points(E="prefill"))
wrong("16.7", "structure")(lambda: {"A": "one row, 16 bits"})
wrong("16.7", "not matched")(points(A="64 rows, one thread of eight", D="one row, 16 bits"))
