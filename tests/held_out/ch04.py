"""Held-out solutions of chapter 04."""

# ruff: noqa: E501
# fmt: off

from . import change, right, wrong

# --- 04.1 -------------------------------------------------------------------------------------------------------------

right("04.1", "var_mean and rsqrt", """
def layer_norm(x, weight, bias, eps=1e-6):
    var, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    return torch.addcmul(bias, (x - mean) * torch.rsqrt(var + eps), weight)
""")
right("04.1", "var_mean and einsum", """
def layer_norm(x, weight, bias, eps=1e-6):
    var, mean = torch.var_mean(x, dim=-1, correction=0)
    y = torch.einsum("bnd,bn->bnd", x - mean[..., None], (var + eps).rsqrt())
    return torch.addcmul(bias, y, weight)
""")
right("04.1", "token by token", """
def layer_norm(x, weight, bias, eps=1e-6):
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for n in range(x.shape[1]):
            t = x[b, n]
            c = t - t.sum() / t.numel()
            out[b, n] = weight * (c / (torch.dot(c, c) / c.numel() + eps).sqrt()) + bias
    return out
""")
right("04.1", "a centring matrix", """
def layer_norm(x, weight, bias, eps=1e-6):
    D = x.shape[-1]
    centring = torch.eye(D) - torch.full((D, D), 1 / D)
    c = torch.einsum("bnd,de->bne", x, centring)
    std = (torch.linalg.vector_norm(c, dim=-1, keepdim=True) ** 2 / D + eps) ** 0.5
    y = c / std
    y *= weight
    y += bias
    return y
""")
N41 = right("04.1", "as most write it", """
def layer_norm(x, weight, bias, eps=1e-6):
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    variance = centred.pow(2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * weight + bias
""")
change("04.1", "variance over D - 1", N41, ("centred.pow(2).mean(-1, keepdim=True)", "x.var(-1, keepdim=True)"), says="your variance divides by the count minus one, as")
change("04.1", "eps outside the root", N41, ("torch.sqrt(variance + eps)", "(torch.sqrt(variance) + eps)"), says="eps is added after the root: at size 1 nobody")
change("04.1", "no eps", N41, ("torch.sqrt(variance + eps)", "torch.sqrt(variance)"), says="your numbers are those you get without eps: a token")
change("04.1", "no root", N41, ("torch.sqrt(variance + eps)", "(variance + eps)"), says="your numbers are those you get when dividing by the")
change("04.1", "mean square instead of variance", N41, ("variance = centred.pow(2)", "variance = x.pow(2)"), says="the mean is subtracted above, and below stands the")
change("04.1", "no mean subtracted", N41, ("mean = x.mean(-1, keepdim=True)", "mean = 0"), says="your numbers are those of RMSNorm, which does not")
change("04.1", "over all tokens of a row", N41, ("-1, keepdim", "(1, 2), keepdim"), says="mean and variance run over tokens and features")
change("04.1", "over the tokens", N41, ("-1, keepdim", "1, keepdim"), says="mean and variance run over the tokens: each token")
change("04.1", "batch norm", N41, ("-1, keepdim", "(0, 1), keepdim"), says="mean and variance run over the batch and the")
change("04.1", "no bias", N41, (" * weight + bias", " * weight"), says="your numbers are those you get without the bias")
change("04.1", "1 + weight", N41, (" * weight + bias", " * (1 + weight) + bias"), says="your scale is 1 + weight: that is Gemma's RMSNorm;")
change("04.1", "bias before weight", N41, ("centred / torch.sqrt(variance + eps) * weight + bias", "(centred / torch.sqrt(variance + eps) + bias) * weight"), says="the bias is added first and scaled, too")
change("04.1", "eps fixed", N41, ("variance + eps", "variance + 1e-5"), says="the eps that is given is not used: torch's usual")
change("04.1", "mean deviation", N41, ("centred.pow(2).mean", "centred.abs().mean"), says="the variance is the mean of the squared")
wrong("04.1", "in place", """
def layer_norm(x, weight, bias, eps=1e-6):
    x -= x.mean(-1, keepdim=True)
    x /= torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    return x * weight + bias
""", says="an in-place operation (+=, *=, a method ending in")
change("04.1", "mean subtracted after the division", N41, ("centred / torch.sqrt(variance + eps) * weight", "(x / torch.sqrt(variance + eps) - mean) * weight"), says="the mean is subtracted after the division: it has")
wrong("04.1", "std instead", """
def layer_norm(x, weight, bias, eps=1e-6):
    return weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + eps) + bias
""", says="two at once: torch's std divides by the count minus")
wrong("04.1", "F.layer_norm", """
def layer_norm(x, weight, bias, eps=1e-6):
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)
""", says="write it yourself: that is what this task is about")

# --- 04.2 -------------------------------------------------------------------------------------------------------------

E42 = right("04.2", "as most write it", """
def exposing():
    t = torch.tensor
    return {
        "bias_first": (t([[1.0, 1.0]]), t([0.0, 0.0]), t([1.0, 1.0]), torch.eye(2) * 20, torch.eye(2)),
        "large_eps": (t([[0.1, -0.1]]), t([0.1, 0.1]), t([0.0, 0.0]), torch.eye(2) * 200, torch.eye(2)),
        "relu": (t([[100.0, -100.0]]), t([100.0, 100.0]), t([0.0, 0.0]), torch.eye(2) * 0.01, torch.eye(2) * 100),
        "residual_from_norm": (t([[300.0, -300.0]]), t([1.0, 1.0]), t([0.0, 0.0]), torch.zeros(2, 2), torch.eye(2)),
        "mean_of_all": (t([[300.0, -100.0], [-300.0, 100.0]]), t([300.0, 100.0]), t([0.0, 0.0]), torch.eye(2), torch.eye(2)),
    }
""")
change("04.2", "relu with large numbers", E42, ("torch.eye(2) * 0.01, torch.eye(2) * 100", "torch.eye(2), torch.eye(2)"), says="On your input for relu, relu gives what the right version gives")
change("04.2", "x is its own norm", E42, ("(t([[300.0, -300.0]]), t([1.0, 1.0])", "(t([[1.0, -1.0]]), t([1.0, 1.0])"), says="On your input for residual_from_norm, residual_from_norm gives")
wrong("04.2", "random", """
def exposing():
    names = ["bias_first", "large_eps", "relu", "residual_from_norm", "mean_of_all"]
    return {n: (torch.randn(3, 4), torch.randn(4), torch.randn(4), torch.randn(4, 8), torch.randn(8, 4)) for n in names}
""", says="Your input for bias_first exposes it, and large_eps, relu,")
change("04.2", "sizes that do not fit", E42, ("torch.zeros(2, 2), torch.eye(2))", "torch.zeros(2, 3), torch.eye(2))"), says="residual_from_norm: x [1, 2], weight [2], bias [2],")

# --- 04.3 -------------------------------------------------------------------------------------------------------------

right("04.3", "a loop over the two halves", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        x = hidden_states
        for norm, part in ((self.layer_norm1, lambda t: self.self_attn(t)[0]), (self.layer_norm2, self.mlp)):
            x = torch.add(x, part(norm(x)))
        return x
""")
right("04.3", "in place on a clone", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        stream = hidden_states.clone()
        stream += self.self_attn(self.layer_norm1(stream))[0]
        stream += self.mlp(self.layer_norm2(stream))
        return stream
""")
L43 = right("04.3", "as most write it", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        residual = hidden_states
        hidden_states = self.layer_norm1(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states)
        hidden_states = residual + hidden_states
        residual = hidden_states
        hidden_states = self.layer_norm2(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states
""")
change("04.3", "first residual from the norm", L43, ("""        residual = hidden_states
        hidden_states = self.layer_norm1(hidden_states)
""", """        hidden_states = self.layer_norm1(hidden_states)
        residual = hidden_states
"""), says="what the attention's output is added to is the")
change("04.3", "second residual from the norm", L43, ("""        residual = hidden_states
        hidden_states = self.layer_norm2(hidden_states)
""", """        hidden_states = self.layer_norm2(hidden_states)
        residual = hidden_states
"""), says="what the MLP's output is added to is the normalised")
change("04.3", "second residual is the input", L43, ("""hidden_states = residual + hidden_states
        residual = hidden_states
""", """hidden_states = residual + hidden_states
"""), says="the MLP's output is added to what came into the")
change("04.3", "layer_norm1 twice", L43, ("self.layer_norm2(hidden_states)", "self.layer_norm1(hidden_states)"), says="the first norm is used in both places")
change("04.3", "pair not taken apart", L43, ("hidden_states, _ = self", "hidden_states = self"), says="attention returns two things, output and weights:")
change("04.3", "second residual forgotten", L43, ("""        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states""", "        hidden_states = self.mlp(hidden_states)"), says="the MLP's output replaces what came in")
wrong("04.3", "post-norm", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        x = hidden_states
        x = self.layer_norm1(x + self.self_attn(x)[0])
        return self.layer_norm2(x + self.mlp(x))
""", says="your norms come after the sums (as in 2017,")
wrong("04.3", "in parallel", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        x = hidden_states
        return x + self.self_attn(self.layer_norm1(x))[0] + self.mlp(self.layer_norm2(x))
""", says="attention and MLP both read what came into the")
wrong("04.3", "MLP first", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        x = hidden_states
        x = x + self.mlp(self.layer_norm2(x))
        return x + self.self_attn(self.layer_norm1(x))[0]
""", says="the MLP comes before the attention")
wrong("04.3", "norms left out", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        x = hidden_states
        x = x + self.self_attn(x)[0]
        x = x + self.mlp(self.layer_norm2(x))
        return x
""", says="the attention reads the tokens as they came,")
wrong("04.3", "in place on the argument", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        hidden_states += self.self_attn(self.layer_norm1(hidden_states))[0]
        hidden_states += self.mlp(self.layer_norm2(hidden_states))
        return hidden_states
""", says="an in-place operation (+=, *=, a method ending in")
wrong("04.3", "MLP half forgotten", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        attended, weights = self.self_attn(self.layer_norm1(hidden_states))
        return hidden_states + attended
""", says="what you return is the sum after the attention: the")
change("04.3", "pair returned", L43, ("n hidden_states", "n (hidden_states,)"), says="the result is a tuple, expected a Tensor")
wrong("04.3", "norm2 on the attention only", """
class SiglipEncoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = modeling_siglip.SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = modeling_siglip.SiglipMLP(config)

    def forward(self, hidden_states):
        x = hidden_states
        attended, _ = self.self_attn(self.layer_norm1(x))
        x = x + attended
        return x + self.mlp(self.layer_norm2(attended))
""", says="the second norm gets the attention's output alone:")
change("04.3", "residual halved", L43, ("""residual + hidden_states
        residual = hidden_states
        hidden_states = self.layer_norm2(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states""", """(residual + hidden_states) / 2
        residual = hidden_states
        hidden_states = self.layer_norm2(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = (residual + hidden_states) / 2"""), says="the sums are divided by two: a residual is a sum,")

# --- 04.4 -------------------------------------------------------------------------------------------------------------

right("04.4", "binary cross entropy", """
def sigmoid_loss(logits, fits):
    return F.binary_cross_entropy_with_logits(logits, fits.to(logits.dtype), reduction="sum") / logits.shape[0]
""")
right("04.4", "softplus, row by row", """
def sigmoid_loss(logits, fits):
    per_picture = []
    for row, ok in zip(logits, fits):
        per_picture.append(F.softplus(-row[ok]).sum() + F.softplus(row[~ok]).sum())
    return torch.stack(per_picture).mean()
""")
right("04.4", "logaddexp", """
def sigmoid_loss(logits, fits):
    z = torch.where(fits, -logits, logits)
    return torch.logaddexp(z, torch.zeros_like(z)).sum(dim=1).mean(dim=0)
""")
S44 = right("04.4", "as most write it", """
def sigmoid_loss(logits, fits):
    labels = 2.0 * fits - 1
    return -F.logsigmoid(labels * logits).sum() / len(logits)
""")
change("04.4", "mean over all", S44, (".sum() / len(logits)", ".mean()"), says="you take the mean over all pairs: the paper sums")
change("04.4", "divided by the texts", S44, ("len(logits)", "logits.shape[1]"), says="you divide by the number of texts: the loss is a")
change("04.4", "sum", S44, (".sum() / len(logits)", ".sum()"), says="you sum over everything: the loss is to be a mean")
change("04.4", "log of sigmoid", S44, ("F.logsigmoid(labels * logits)", "torch.log(torch.sigmoid(labels * logits))"), says="for -100, the sigmoid is 0 in float32, and its")
change("04.4", "labels 0 and 1", S44, ("labels = 2.0 * fits - 1", "labels = fits.float()"), says="with labels 1 and 0, the pairs that do not belong")
change("04.4", "labels turned round", S44, ("labels = 2.0 * fits - 1", "labels = 1 - 2.0 * fits"), says="the labels are the wrong way round: pairs that")
change("04.4", "sign", S44, ("-F.logsigmoid", "F.logsigmoid"), says="your loss has the wrong sign: it falls when the")
wrong("04.4", "diagonal only", """
def sigmoid_loss(logits, fits):
    n, m = logits.shape
    labels = 2 * torch.eye(n, m) - 1
    return -F.logsigmoid(labels * logits).sum() / n
""", says="you take the matching pairs to be those of equal")
wrong("04.4", "only the pairs that fit", """
def sigmoid_loss(logits, fits):
    return -F.logsigmoid(logits)[fits].sum() / logits.shape[0]
""", says="only the matching pairs count: saying yes to")
wrong("04.4", "CLIP's loss", """
def sigmoid_loss(logits, fits):
    log_p = logits.log_softmax(dim=-1)
    return -(log_p * fits).sum() / len(logits)
""", says="your softmax lets the texts of a picture compete:")
change("04.4", "clamped", S44, ("F.logsigmoid(labels * logits)", "torch.log(torch.sigmoid(labels * logits).clamp(min=1e-7))"), says="the probability is kept away from 0 (a clamp, or a")
wrong("04.4", "a Python number", """
def sigmoid_loss(logits, fits):
    labels = 2.0 * fits - 1
    loss = -F.logsigmoid(labels * logits).sum() / len(logits)
    return loss.item()
""", says="the chain is cut on the way: .detach(), .data,")
change("04.4", "one axis left", S44, (".sum() / len(logits)", ".mean(dim=0).sum(dim=0, keepdim=True)"), says="the shape is [1], expected []")
wrong("04.4", "squared error", """
def sigmoid_loss(logits, fits):
    return (torch.sigmoid(logits) - fits.float()).square().sum(1).mean()
""", says="your loss is a squared error of probabilities:")

# --- 04.5 -------------------------------------------------------------------------------------------------------------

right("04.5", "plain", """
def read_matrices():
    return {
        "A": "every text the same",
        "B": "untrained image encoder",
        "C": "texts moved on by one",
        "D": "as it was trained",
        "E": "colours left out of the texts",
    }
""")
wrong("04.5", "B and E exchanged", """
def read_matrices():
    return {
        "A": "every text the same",
        "B": "colours left out of the texts",
        "C": "texts moved on by one",
        "D": "as it was trained",
        "E": "untrained image encoder",
    }
""", says="'colours left out of the texts' and another are")
wrong("04.5", "C and D exchanged", """
def read_matrices():
    return {
        "A": "every text the same",
        "B": "untrained image encoder",
        "C": "as it was trained",
        "D": "texts moved on by one",
        "E": "colours left out of the texts",
    }
""", says="'as it was trained' and another are exchanged: on")

# --- 04.6 -------------------------------------------------------------------------------------------------------------

right("04.6", "one name throughout", """
class FromTheNorm(modeling_siglip.SiglipEncoderLayer):
    def forward(self, hidden_states):
        x = self.layer_norm1(hidden_states)
        attended, _ = self.self_attn(x)
        x = self.layer_norm2(attended.add(x))
        x = x.add(self.mlp(x))
        return x
""")
wrong("04.6", "the right layer", """
class FromTheNorm(modeling_siglip.SiglipEncoderLayer):
    def forward(self, hidden_states):
        hidden_states = hidden_states + self.self_attn(self.layer_norm1(hidden_states))[0]
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))
""", says="your layer computes what the right one computes:")
B46 = right("04.6", "as most write it", """
class FromTheNorm(modeling_siglip.SiglipEncoderLayer):
    def forward(self, hidden_states):
        normed = self.layer_norm1(hidden_states)
        hidden_states = normed + self.self_attn(normed)[0]
        normed = self.layer_norm2(hidden_states)
        return normed + self.mlp(normed)
""")
change("04.6", "only the first", B46, ("return normed + self", "return hidden_states + self"), says="the second residual, around the MLP, still comes")
change("04.6", "only the second", B46, ("hidden_states = normed + self", "hidden_states = hidden_states + self"), says="the first residual, around the attention, still")
change("04.6", "attention without the norm", B46, ("self.self_attn(normed)[0]", "self.self_attn(hidden_states)[0]"), says="the attention reads the input as it came: it is to")
wrong("04.6", "no residual", """
class FromTheNorm(modeling_siglip.SiglipEncoderLayer):
    def forward(self, hidden_states):
        x = self.self_attn(self.layer_norm1(hidden_states))[0]
        return self.mlp(self.layer_norm2(x))
""", says="nothing is added any more: the residuals are to")
wrong("04.6", "post-norm", """
class FromTheNorm(modeling_siglip.SiglipEncoderLayer):
    def forward(self, hidden_states):
        x = self.layer_norm1(hidden_states + self.self_attn(hidden_states)[0])
        return self.layer_norm2(x + self.mlp(x))
""", says="your norms come after the sums: they are to stay")
wrong("04.6", "second residual from the first norm", """
class FromTheNorm(modeling_siglip.SiglipEncoderLayer):
    def forward(self, hidden_states):
        normed = self.layer_norm1(hidden_states)
        x = normed + self.self_attn(normed)[0]
        return normed + self.mlp(self.layer_norm2(x))
""", says="the MLP's result is added to the output of the")
change("04.6", "layer_norm1 in both places", B46, ("2", "1"), says="the first norm is used in both places")
