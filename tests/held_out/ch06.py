"""Held-out solutions of chapter 06."""

# ruff: noqa: E501
# fmt: off

from . import change, right, wrong

# --- 06.1 -------------------------------------------------------------------------------------------------------------

right("06.1", "rsqrt and einsum", """
def rms_norm(x, eps=1e-6):
    ms = torch.einsum("...d,...d->...", x, x) / x.shape[-1]
    return x * (ms + eps).rsqrt().unsqueeze(-1)
""")
right("06.1", "vector_norm", """
def rms_norm(x, eps=1e-6):
    D = x.size(-1)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / (length.square() / D + eps) ** 0.5
""")
right("06.1", "torch's own", """
def rms_norm(x, eps=1e-6):
    return torch.nn.functional.rms_norm(x, x.shape[-1:], eps=eps)
""")
R61 = right("06.1", "as most write it", """
def rms_norm(x, eps=1e-6):
    mean_square = x.pow(2).mean(dim=-1, keepdim=True)
    return x / torch.sqrt(mean_square + eps)
""")
change("06.1", "eps outside", R61, ("torch.sqrt(mean_square + eps)", "(torch.sqrt(mean_square) + eps)"), says="your numbers are those you get when eps is added")
change("06.1", "no root", R61, ("torch.sqrt(mean_square + eps)", "(mean_square + eps)"), says="your numbers are those you get when dividing by the")
change("06.1", "sum", R61, (".mean(dim=-1, keepdim=True)", ".sum(dim=-1, keepdim=True)"), says="your numbers are those you get from the root of the")
change("06.1", "mean over all", R61, (".mean(dim=-1, keepdim=True)", ".mean()"), says="your numbers are those you get when one root mean")
change("06.1", "axis 1", R61, ("dim=-1", "dim=1"), says="your mean runs over axis 1, counted from the front:")
change("06.1", "axis 0", R61, ("dim=-1", "dim=0"), says="your numbers are those you get when the mean runs")
change("06.1", "no eps", R61, (" + eps", ""), says="your numbers are those you get without eps: a token")
change("06.1", "eps fixed", R61, ("+ eps", "+ 1e-6"), says="the eps that is given is not used: a fixed one is")
change("06.1", "mean subtracted", R61, ("mean_square = x", """x = x - x.mean(-1, keepdim=True)
    mean_square = x"""), says="your numbers are those of a layer norm: RMSNorm")
change("06.1", "mean of absolute values", R61, ("x.pow(2).mean(dim=-1, keepdim=True)", "x.abs().mean(dim=-1, keepdim=True).pow(2)"), says="your numbers are those you get from the mean of the")
change("06.1", "std", R61, ("torch.sqrt(mean_square + eps)", "x.std(-1, keepdim=True)"), says="your numbers are those you get when dividing by the")
change("06.1", "keepdim forgotten", R61, (", keepdim=True", ""), says="the mean has one axis less than x, so it lines up")
wrong("06.1", "in place", """
def rms_norm(x, eps=1e-6):
    x /= torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    return x
""", says="an in-place operation (+=, *=, a method ending in")
change("06.1", "eps squared", R61, ("torch.sqrt(mean_square + eps)", "torch.sqrt(mean_square + eps**2)"), says="eps is squared before it is added: that is next to")
change("06.1", "float32 comes out", R61, ("return x /", """x = x.float()
    return x /"""), says="a cast is missing or too much: the result's dtype")
change("06.1", "multiplied", R61, ("return x / torch.sqrt(mean_square + eps)", "return x * torch.sqrt(mean_square + eps)"), says="your numbers are those you get when multiplying by")
change("06.1", "axis 2", R61, ("dim=-1", "dim=2"), says="your axis is 2, counted from the front: x may have")
wrong("06.1", "F.normalize", """
def rms_norm(x, eps=1e-6):
    return torch.nn.functional.normalize(x, dim=-1, eps=eps)
""", says="each token is divided by its length, as F.normalize")

# --- 06.2 -------------------------------------------------------------------------------------------------------------

right("06.2", "torch's functions", """
import torch.nn.functional as F
def normalise(x, kind, eps=1e-6):
    D = x.shape[-1]
    match kind:
        case "batch":
            return F.batch_norm(x.transpose(1, 2), None, None, training=True, eps=eps).transpose(1, 2)
        case "layer":
            return F.layer_norm(x, [D], eps=eps)
        case "rms":
            return F.rms_norm(x, [D], eps=eps)
""")
right("06.2", "one line, flattened", """
def normalise(x, kind, eps=1e-6):
    flat = x.flatten(0, 1)
    axis = {"batch": 0, "layer": 1, "rms": 1}[kind]
    if kind != "rms":
        flat = flat - flat.mean(axis, keepdim=True)
    return (flat * torch.rsqrt((flat * flat).mean(axis, keepdim=True) + eps)).view_as(x)
""")
N62 = right("06.2", "as most write it", """
def normalise(x, kind, eps=1e-6):
    if kind == "batch":
        mean = x.mean(dim=(0, 1), keepdim=True)
        var = x.var(dim=(0, 1), keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + eps)
    elif kind == "layer":
        mean = x.mean(dim=-1, keepdim=True)
        var = x.var(dim=-1, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + eps)
    else:
        return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)
""")
change("06.2", "batch over axis 0 only", N62, ("(0, 1)", "0"), says="your batch norm takes its mean over the rows of the")
change("06.2", "batch over each row", N62, ("(0, 1)", "1"), says="your batch norm takes its mean inside each row alone")
change("06.2", "batch divides by n - 1", N62, ("dim=(0, 1), keepdim=True, correction=0", "dim=(0, 1), keepdim=True"), says="your variance divides by the count minus one, as")
change("06.2", "layer divides by D - 1", N62, ("dim=-1, keepdim=True, correction=0", "dim=-1, keepdim=True"), says="your variance divides by the count minus one, as")
change("06.2", "layer over the whole row", N62, ("""-1, keepdim=True)
        var = x.var(dim=-1""", """(1, 2), keepdim=True)
        var = x.var(dim=(1, 2)"""), says="your layer norm mixes the tokens of a row: each")
change("06.2", "rms subtracts", N62, ("return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)", """x = x - x.mean(-1, keepdim=True)
        return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)"""), says="your RMSNorm subtracts the mean: then it is the")
wrong("06.2", "batch and layer exchanged", """
def normalise(x, kind, eps=1e-6):
    if kind == "layer":
        mean = x.mean(dim=(0, 1), keepdim=True)
        var = x.var(dim=(0, 1), keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + eps)
    elif kind == "batch":
        mean = x.mean(dim=-1, keepdim=True)
        var = x.var(dim=-1, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + eps)
    else:
        return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)
""", says="your batch norm is the layer norm and the other way")
change("06.2", "rms: variance", N62, ("x.pow(2).mean(dim=-1, keepdim=True)", "x.var(dim=-1, keepdim=True, correction=0)"), says="your RMSNorm divides by the standard deviation")
change("06.2", "rms: variance with D - 1", N62, ("x.pow(2).mean(dim=-1, keepdim=True)", "x.var(dim=-1, keepdim=True)"), says="your RMSNorm divides by the standard deviation")
wrong("06.2", "rms: only the mean above is 0", """
def normalise(x, kind, eps=1e-6):
    dims = (0, 1) if kind == "batch" else (-1,)
    mean = x.mean(dims, keepdim=True)
    var = (x - mean).square().mean(dims, keepdim=True)
    if kind == "rms":
        mean = 0
    return (x - mean) / torch.sqrt(var + eps)
""", says="your RMSNorm divides by the standard deviation")
change("06.2", "rms: eps outside", N62, ("return x / torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)", "return x / (torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True)) + eps)"), says="in your rms norm eps is added after the root: for")
change("06.2", "layer without eps", N62, ("""    elif kind == "layer":
        mean = x.mean(dim=-1, keepdim=True)
        var = x.var(dim=-1, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + eps)""", """    elif kind == "layer":
        mean = x.mean(dim=-1, keepdim=True)
        var = x.var(dim=-1, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var)"""), says="your layer norm leaves eps out")
change("06.2", "layer: divided by the mean square of x", N62, ("""        return (x - mean) / torch.sqrt(var + eps)
    else""", """        return (x - mean) / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    else"""), says="your layer norm subtracts the mean, and divides by")
change("06.2", "rms like batch", N62, (").mean(dim=-1", ").mean(dim=(0, 1)"), says="the mean square of your RMSNorm runs over the")
change("06.2", "no return for rms", N62, (""":
        return """, """:
        """), says="the `return` is missing, or returns nothing")
change("06.2", "batch over everything", N62, ("""), keepdim=True)
        var = x.var(dim=(0, 1""", """, 2), keepdim=True)
        var = x.var(dim=(0, 1, 2"""), says="your batch norm takes one mean over all features:")
change("06.2", "batch: not centred", N62, ("""), keepdim=True, correction=0)
        return (x - mean)""", """), keepdim=True, correction=0)
        return x"""), says="your batch norm divides by the right number and")

# --- 06.3 -------------------------------------------------------------------------------------------------------------

right("06.3", "torch's own rms_norm", """
class GemmaRMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.dim, self.epsilon = dim, eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return nn.functional.rms_norm(x.float(), (self.dim,), 1 + self.weight.float(), self.epsilon).to(x.dtype)
""")
right("06.3", "step by step with other names", """
class GemmaRMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        nn.init.zeros_(self.weight)
        self.small = eps

    def forward(self, x):
        incoming = x.dtype
        y = x.to(torch.float32, copy=True)
        y /= torch.sqrt(torch.mean(y * y, dim=-1, keepdim=True) + self.small)
        y = torch.addcmul(y, y, self.weight.to(torch.float32))
        return y.to(incoming)
""")
G63 = right("06.3", "as most write it", """
class GemmaRMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        scaled = normed * (1.0 + self.weight.float())
        return scaled.type_as(x)
""")
change("06.3", "weight, not 1 + weight", G63, ("(1.0 + self.weight.float())", "self.weight.float()"), says="your numbers are those you get when multiplying by")
change("06.3", "ones", G63, ("torch.zeros(dim)", "torch.ones(dim)"), says="published Gemma weights are what is added to")
change("06.3", "cast before the scale", G63, ("""scaled = normed * (1.0 + self.weight.float())
        return scaled.type_as(x)""", "return normed.type_as(x) * (1.0 + self.weight)"), says="the result is rounded to the dtype of x before the")
change("06.3", "not in float32", G63, ("wide = x.float()", "wide = x"), says="in float16 the square of 500 is more than 65504,")
change("06.3", "1 + weight in the weight's dtype", G63, ("(1.0 + self.weight.float())", "(1.0 + self.weight).float()"), says="1 + weight is worked out in bfloat16, where 1.03")
wrong("06.3", "scale instead of weight", """
class GemmaRMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        scaled = normed * (1.0 + self.scale.float())
        return scaled.type_as(x)
""", says="yours has a parameter `scale` [7] that the")
change("06.3", "eps fixed", G63, ("+ self.eps)", "+ 1e-6)"), says="the eps given to the constructor is not used: a")
change("06.3", "no Parameter", G63, ("nn.Parameter(torch.zeros(dim))", "torch.zeros(dim)"), says="parameter `weight` [7] is missing: yours is a plain")
change("06.3", "float32 comes out", G63, ("return scaled.type_as(x)", "return scaled"), says="the numbers are right and remain float32: the next")
change("06.3", "dtype of the weight", G63, ("return scaled.type_as(x)", "return scaled.type_as(self.weight)"), says="the numbers are right and remain float32: the next")
change("06.3", "mean subtracted", G63, ("normed = wide *", """wide = wide - wide.mean(-1, keepdim=True)
        normed = wide *"""), says="your numbers are those of a layer norm, which")
change("06.3", "eps outside", G63, ("torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)", "1 / (wide.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)"), says="eps is added after the root: at size 1 nobody")
change("06.3", "[1, dim]", G63, ("torch.zeros(dim)", "torch.zeros(1, dim)"), says="`weight` has shape [1, 7], expected [7]")
change("06.3", "weights first", G63, ("""normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        scaled = normed * (1.0 + self.weight.float())""", """wide = wide * (1.0 + self.weight.float())
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)"""), says="the weights are applied before the norm, which then")
change("06.3", "squared before the cast", G63, ("wide.pow(2).mean", "x.pow(2).mean"), says="in float16 the square of 500 is more than 65504,")
change("06.3", "axis 1", G63, ("wide.pow(2).mean(-1", "wide.pow(2).mean(1"), says="the mean runs over axis 1, counted from the front:")
change("06.3", "brackets forgotten", G63, ("(1.0 + self.weight.float())", "1.0 + self.weight.float()"), says="the weight is added to the result and not to the")
change("06.3", "random start", G63, ("torch.zeros(dim)", "torch.randn(dim) * 0.02"), says="a new norm scales by 1")
change("06.3", "back to float32", G63, ("return scaled.type_as(x)", "return scaled.type_as(x).float()"), says="the result is cast to the dtype that came in and to")
change("06.3", "half", G63, ("x.float()", "x.half()"), says="everything is computed in float16, whatever comes")

# --- 06.4 -------------------------------------------------------------------------------------------------------------

right("06.4", "equal weights that are not 0", """
def exposing():
    t = torch.tensor
    none = torch.zeros(2)
    return {
        "half_inside": (t([[300.0, -300.0]], dtype=torch.float16), none),
        "mean_subtracted": (t([[1.0, 2.0]]), none),
        "eps_outside": (t([[1e-3, -1e-3]]), none),
        "over_all": (t([[1.0, -1.0], [10.0, -10.0]]), none),
        "weight_first": (t([[1.0, -1.0]]), t([1.0, 1.0])),
    }
""")
E64 = right("06.4", "as most write it", """
def exposing():
    t = torch.tensor
    none = torch.zeros(2)
    return {
        "half_inside": (t([[300.0, -300.0]], dtype=torch.float16), none),
        "mean_subtracted": (t([[1.0, 2.0]]), none),
        "eps_outside": (t([[1e-3, -1e-3]]), none),
        "over_all": (t([[1.0, -1.0], [10.0, -10.0]]), none),
        "weight_first": (t([[1.0, -1.0]]), t([0.0, 1.0])),
    }
""")
change("06.4", "mean of zero", E64, ("t([[1.0, 2.0]])", "t([[1.0, -1.0]])"), says="On your input for mean_subtracted, mean_subtracted gives what")
change("06.4", "mean not zero", E64, ('"over_all": (t([[1.0, -1.0], [10.0, -10.0]])', '"over_all": (t([[1.0, 2.0], [10.0, 20.0]])'), says="Your input for over_all exposes it, and mean_subtracted, too")
change("06.4", "float32", E64, ('"half_inside": (t([[300.0, -300.0]], dtype=torch.float16)', '"half_inside": (t([[300.0, -300.0]])'), says="On your input for half_inside, half_inside gives what the right")
change("06.4", "too large for eps", E64, ("[[1e-3, -1e-3]]", "[[1.0, -1.0]]"), says="On your input for eps_outside, eps_outside gives what the right")
change("06.4", "tokens of one size", E64, ('"over_all": (t([[1.0, -1.0], [10.0, -10.0]])', '"over_all": (t([[1.0, -1.0], [1.0, -1.0]])'), says="On your input for over_all, over_all gives what the right")

# --- 06.5 -------------------------------------------------------------------------------------------------------------

right("06.5", "layer_norm of torch", """
class Centred(modeling_gemma.GemmaRMSNorm):
    def forward(self, x):
        y = torch.nn.functional.layer_norm(x.float(), x.shape[-1:], self.weight.float() + 1, None, self.eps)
        return y.to(x.dtype)
""")
right("06.5", "super().forward on float32", """
class Centred(modeling_gemma.GemmaRMSNorm):
    def forward(self, x):
        wide = x.to(torch.float32)
        return super().forward(wide - torch.mean(wide, dim=-1, keepdim=True)).to(x.dtype)
""")
C65 = right("06.5", "as most write it", """
class Centred(modeling_gemma.GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).type_as(x)
""")
change("06.5", "nothing subtracted", C65, ("""        wide = wide - wide.mean(-1, keepdim=True)
""", ""), says="your norm computes what Gemma's does: no mean is")
wrong("06.5", "subtracted after the norm", """
class Centred(modeling_gemma.GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        normed = normed - normed.mean(-1, keepdim=True)
        return (normed * (1.0 + self.weight.float())).type_as(x)
""", says="the mean is subtracted, and the root mean square is")
change("06.5", "mean of all", C65, ("wide.mean(-1, keepdim=True)", "wide.mean()"), says="one mean of all tokens is subtracted: each token")
change("06.5", "mean over tokens", C65, ("wide.mean(-1, keepdim=True)", "wide.mean(1, keepdim=True)"), says="your mean runs over axis 1, counted from the front:")
change("06.5", "weight only", C65, ("(1.0 + self.weight.float())", "self.weight.float()"), says="the scale was 1 + weight in Gemma's norm, and is to")
change("06.5", "cast early", C65, ("return (normed * (1.0 + self.weight.float())).type_as(x)", "return normed.type_as(x) * (1.0 + self.weight)"), says="the result is rounded to the dtype of x before the")
wrong("06.5", "mean in x's dtype", """
class Centred(modeling_gemma.GemmaRMSNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))
""", says="the mean is worked out and subtracted in the dtype")
change("06.5", "eps fixed", C65, ("+ self.eps)", "+ 1e-5)"), says="your eps is fixed: the module has its own, self.eps")
wrong("06.5", "variance over D - 1", """
class Centred(modeling_gemma.GemmaRMSNorm):
    def forward(self, x):
        wide = x.float()
        normed = (wide - wide.mean(-1, keepdim=True)) / torch.sqrt(wide.var(-1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).type_as(x)
""", says="`var` divides by D - 1 unless you say `correction=0`")
