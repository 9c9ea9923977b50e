"""Held-out solutions of chapter 16."""

# ruff: noqa: E501
# fmt: off

from . import answer, change, exchange, right, wrong

# --- 16.1 -------------------------------------------------------------------------------------------------------------

FLOPS = """
def prefill_flops(config, L):
    D, F_, d = config.hidden_size, config.intermediate_size, config.head_dim
    H, H_kv = config.num_attention_heads, config.num_key_value_heads
    matrices = D * H * d + 2 * D * H_kv * d + H * d * D + 3 * D * F_
    attention = 2 * 2 * H * d * L * L
    head = 2 * config.vocab_size * D
    return config.num_hidden_layers * (2 * L * matrices + attention) + head
"""
change("16.1", "2 forgotten in the matrices", FLOPS, ("2 * L * matrices", "L * matrices"), truth="a weight is one multiplication and one addition: the 2 is missing for the matrices")
change("16.1", "mix forgotten", FLOPS, ("attention = 2 * 2 *", "attention = 2 *"), truth="only the scores are counted, not the mix of the values")
change("16.1", "shared heads in the scores", FLOPS, ("attention = 2 * 2 * H *", "attention = 2 * 2 * H_kv *"), truth="scores are counted for the key/value heads only")
change("16.1", "key heads like query heads", FLOPS, ("2 * D * H_kv * d", "2 * D * H * d"), truth="keys and values are counted with H heads instead of H_kv")
change("16.1", "causal half", FLOPS, ("attention = 2 * 2 * H * d * L * L", "attention = 2 * H * d * L * (L + 1)"), truth="only half of the scores are counted, as with a causal mask")
change("16.1", "head for all tokens", FLOPS, ("head = 2 * config", "head = 2 * L * config"), truth="the head is counted for all tokens, not only the last")
change("16.1", "head forgotten", FLOPS, (" + head\n", "\n"), truth="the head is missing")
change("16.1", "head in each layer", FLOPS, ("(2 * L * matrices + attention) + head", "(2 * L * matrices + attention + head)"), truth="the head is counted in each layer")
change("16.1", "two matrices in the MLP", FLOPS, ("3 * D * F_", "2 * D * F_"), truth="the MLP has three matrices, not two")
change("16.1", "output matrix forgotten", FLOPS, (" + H * d * D", ""), truth="o_proj is missing", says="output projection is not in your count")
change("16.1", "D by D", FLOPS, ("D * H * d + 2", "D * D + 2"), ("H * d * D", "D * D"), truth="q_proj and o_proj are counted as D by D, but H * d need not be D")
change("16.1", "one token", FLOPS, ("2 * L * matrices", "2 * matrices"), truth="the matrices are counted for one token only")
change("16.1", "attention not squared", FLOPS, ("* d * L * L", "* d * L"), truth="attention is counted with L instead of L squared")
change("16.1", "one layer", FLOPS, ("config.num_hidden_layers * (2", "(2"), truth="only one layer is counted")
right("16.1", "a list of shapes", """
def prefill_flops(config, L):
    inner = config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    shapes = [(inner, config.hidden_size), (shared, config.hidden_size), (shared, config.hidden_size), (config.hidden_size, inner)]
    shapes += [(config.intermediate_size, config.hidden_size)] * 2 + [(config.hidden_size, config.intermediate_size)]
    total = 0
    for _ in range(config.num_hidden_layers):
        for rows, columns in shapes:
            total += 2 * rows * columns * L
        for _ in range(config.num_attention_heads):
            total += 2 * L * L * config.head_dim
            total += 2 * L * config.head_dim * L
    return total + 2 * config.hidden_size * config.vocab_size
""")

# --- 16.2 -------------------------------------------------------------------------------------------------------------

BYTES = """
def step_bytes(parameters, bits, config, rows, length, cache_bits=16):
    weights = parameters * bits / 8
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return weights + rows * length * per_token * cache_bits / 8
"""
change("16.2", "query heads", BYTES, ("config.num_key_value_heads", "config.num_attention_heads"), truth="the cache is counted with all query heads")
change("16.2", "values forgotten", BYTES, ("per_token = 2 * ", "per_token = "), truth="only keys are counted, not the values")
change("16.2", "weights for each row", BYTES, ("weights = parameters", "weights = rows * parameters"), truth="the weights are counted once for each row")
change("16.2", "cache of one row", BYTES, ("rows * length", "length"), truth="the cache is counted for one row only")
change("16.2", "cache bits ignored", BYTES, ("per_token * cache_bits", "per_token * bits"), truth="the cache is counted with the weights' bits")
change("16.2", "cache always 16 bits", BYTES, ("per_token * cache_bits", "per_token * 16"), truth="the cache is always counted with 16 bits")
change("16.2", "bits not bytes", BYTES, (" / 8", ""), truth="returns bits, not bytes")
change("16.2", "layers forgotten", BYTES, ("config.num_hidden_layers * ", ""), truth="the layers are missing in the cache")
change("16.2", "whole bytes for weights", BYTES, ("bits / 8\n    per", "(bits // 8)\n    per"), truth="bits // 8 is 0 for 4 bits")
change("16.2", "hidden size", BYTES, ("config.num_key_value_heads * config.head_dim", "config.hidden_size"), truth="the cache is counted with the hidden size instead of key/value heads times head size")
change("16.2", "one place", BYTES, ("rows * length *", "rows *"), truth="the cache of one token only: length is missing")
change("16.2", "cache forgotten", BYTES, (" + rows * length * per_token * cache_bits / 8", ""), truth="the cache is not counted")
right("16.2", "in bits first", """
def step_bytes(parameters, bits, config, rows, length, cache_bits=16):
    total_bits = parameters * bits
    for kept in ("key", "value"):
        total_bits += config.num_hidden_layers * rows * length * config.num_key_value_heads * config.head_dim * cache_bits
    return total_bits / 8.0
""")

# --- 16.3 -------------------------------------------------------------------------------------------------------------

ROOF = """
def tokens_per_second(rows, flops, read, compute, bandwidth):
    arithmetic, fetching = flops / compute, read / bandwidth
    return rows / max(arithmetic, fetching), "memory" if fetching > arithmetic else "compute"
"""
change("16.3", "one after the other", ROOF, ("max(arithmetic, fetching)", "(arithmetic + fetching)"), truth="adds the two times, but both go on at once")
change("16.3", "shorter time", ROOF, ("max(", "min("), truth="takes the shorter of the two times", says="the faster of the two")
change("16.3", "rows forgotten", ROOF, ("rows / max", "1 / max"), truth="counts one token a step instead of one for each row")
change("16.3", "names exchanged", ROOF, ('"memory" if fetching > arithmetic else "compute"', '"compute" if fetching > arithmetic else "memory"'), truth="memory and compute are exchanged")
change("16.3", "seconds a token", ROOF, ("rows / max(arithmetic, fetching)", "max(arithmetic, fetching) / rows"), truth="returns seconds for a token, not tokens a second")
change("16.3", "rows counted twice", ROOF, ("flops / compute, read / bandwidth", "rows * flops / compute, rows * read / bandwidth"), truth="multiplies FLOPs and bytes by rows, though they are for the whole batch")
change("16.3", "bandwidth and compute exchanged", ROOF, ("flops / compute, read / bandwidth", "flops / bandwidth, read / compute"), truth="divides FLOPs by the bandwidth and bytes by the compute")
change("16.3", "always memory", ROOF, ('"memory" if fetching > arithmetic else "compute"', '"memory"'), truth="the name is always memory")
change("16.3", "compares the counts", ROOF, ('"memory" if fetching > arithmetic', '"memory" if read > flops'), truth="compares FLOPs with bytes instead of the times")
change("16.3", "other word", ROOF, ('"memory"', '"bandwidth"'), truth="the name is 'bandwidth' instead of 'memory'")
change("16.3", "whole number", ROOF, ("rows / max(arithmetic, fetching)", "int(rows / max(arithmetic, fetching))"), truth="the rate is cut to a whole number")
change("16.3", "steps a second as name first", ROOF, ('return rows / max(arithmetic, fetching), "memory" if fetching > arithmetic else "compute"', 'return ("memory" if fetching > arithmetic else "compute"), rows / max(arithmetic, fetching)'), truth="returns the name first")
right("16.3", "by the roof", """
def tokens_per_second(rows, flops, read, compute, bandwidth):
    intensity = flops / read
    reachable = min(compute, bandwidth * intensity)
    name = "compute" if bandwidth * intensity >= compute else "memory"
    return reachable / flops * rows, name
""")

# --- 16.4 -------------------------------------------------------------------------------------------------------------

WATCH = """
def seconds_of(work, make_input, wait, clock, rounds):
    work(make_input())
    wait()
    seconds = []
    for _ in range(rounds):
        x = make_input()
        wait()
        start = clock()
        work(x)
        wait()
        seconds.append(clock() - start)
    return statistics.median(seconds)
"""
change("16.4", "input in the time", WATCH, ("        x = make_input()\n        wait()\n        start = clock()\n", "        start = clock()\n        x = make_input()\n"), truth="making the input is inside the time")
change("16.4", "does not wait", WATCH, ("        work(x)\n        wait()\n", "        work(x)\n"), truth="the clock stops when the work is only asked for, not done")
change("16.4", "no warm-up", WATCH, ("    work(make_input())\n    wait()\n", ""), truth="the very first call is counted: there is no warm-up")
change("16.4", "mean", WATCH, ("statistics.median", "statistics.mean"), truth="the mean is moved by outliers; the median is not")
change("16.4", "minimum", WATCH, ("statistics.median", "min"), truth="the smallest time is not the usual case", says="the fastest round")
change("16.4", "warm-up not waited for", WATCH, ("    work(make_input())\n    wait()\n", "    work(make_input())\n"), ("        wait()\n        start", "        start"), truth="the warm-up is not waited for: its rest is in the first round")
change("16.4", "waits after the clock", WATCH, ("        work(x)\n        wait()\n        seconds.append(clock() - start)", "        work(x)\n        seconds.append(clock() - start)\n        wait()"), truth="waits only after the clock was read")
change("16.4", "one round too few", WATCH, ("range(rounds)", "range(rounds - 1)"), truth="the warm-up is one of the rounds: only rounds - 1 calls count")
change("16.4", "total time", WATCH, ("statistics.median(seconds)", "sum(seconds)"), truth="returns the time of all rounds together", says="the times are added up")
change("16.4", "maximum", WATCH, ("statistics.median", "max"), truth="the largest time is the outlier")
change("16.4", "waits once at the end", WATCH, ("    seconds = []\n    for _ in range(rounds):\n        x = make_input()\n        wait()\n        start = clock()\n        work(x)\n        wait()\n        seconds.append(clock() - start)\n    return statistics.median(seconds)", "    inputs = [make_input() for _ in range(rounds)]\n    start = clock()\n    for x in inputs:\n        work(x)\n    wait()\n    return (clock() - start) / rounds"), truth="one clock for all rounds: returns a mean, which outliers move")
change("16.4", "middle not sorted", WATCH, ("statistics.median(seconds)", "seconds[rounds // 2]"), truth="takes the middle round without sorting the times")
right("16.4", "first measurement thrown away, sorted", """
def seconds_of(work, make_input, wait, clock, rounds):
    times = []
    for i in range(rounds + 1):
        x = make_input()
        wait()
        before = clock()
        work(x)
        wait()
        after = clock()
        if i > 0:
            times.append(after - before)
    return sorted(times)[rounds // 2]
""")
right("16.4", "inputs made beforehand, torch.median", """
def seconds_of(work, make_input, wait, clock, rounds):
    first, *inputs = [make_input() for _ in range(rounds + 1)]
    work(first)
    wait()
    times = torch.zeros(rounds, dtype=torch.float64)
    for i, x in enumerate(inputs):
        start = clock()
        work(x)
        wait()
        times[i] = clock() - start
    return times.median().item()
""")

# --- 16.5 -------------------------------------------------------------------------------------------------------------

EIGHT = """
def quantize_rows(weight):
    weight = weight.float()
    scale = weight.abs().amax(dim=1) / 127
    numbers = (weight / scale.clamp(min=1e-30)[:, None]).round().to(torch.int8)
    return numbers, scale
"""
change("16.5", "size forgotten", EIGHT, ("weight.abs().amax(dim=1)", "weight.amax(dim=1)"), truth="the largest number is taken, not the largest size: negative ones overflow")
change("16.5", "one scale for each column", EIGHT, ("amax(dim=1) / 127", "amax(dim=0) / 127"), ("[:, None]", ""), truth="the largest is taken over the rows: one scale for each column")
change("16.5", "one scale for all", EIGHT, ("weight.abs().amax(dim=1)", "weight.abs().max().expand(len(weight)).clone()"), truth="one scale for the whole matrix")
change("16.5", "cut off", EIGHT, (".round()", ""), truth="fractions are cut off, not rounded")
change("16.5", "128", EIGHT, ("/ 127", "/ 128"), truth="the scale is for 128, so the largest weight overflows int8")
change("16.5", "255 steps", EIGHT, ("/ 127", "/ 255"), truth="divides by 255 instead of 127", says="becomes 255")
change("16.5", "rows of zeros", EIGHT, (".clamp(min=1e-30)", ""), truth="0 / 0 is NaN in a row of zeros")
change("16.5", "zeros get scale 1", EIGHT, ("    numbers =", "    scale = torch.where(scale == 0, 1.0, scale)\n    numbers ="), truth="a row of zeros gets the scale 1 instead of 0")
change("16.5", "clamped scale returned", EIGHT, ("amax(dim=1) / 127", "amax(dim=1).clamp(min=1e-3) / 127"), truth="a row of zeros gets a scale of 1e-8 instead of 0, and small rows are wrong")
change("16.5", "inverse scale", EIGHT, ("    return numbers, scale", "    return numbers, torch.where(scale > 0, 1 / scale, 0.0)"), truth="returns what to divide by, not what to multiply by")
change("16.5", "scale with an axis more", EIGHT, ("    return numbers, scale", "    return numbers, scale[:, None]"), truth="the scale is [rows, 1] instead of [rows]")
change("16.5", "computed in bfloat16", EIGHT, ("    weight = weight.float()\n", ""), ("return numbers, scale", "return numbers, scale.float()"), truth="computes in bfloat16 instead of float32")
change("16.5", "scale in bfloat16", EIGHT, ("    weight = weight.float()\n", "    dtype = weight.dtype\n    weight = weight.float()\n"), ("return numbers, scale", "return numbers, scale.to(dtype)"), truth="the scale is in the weight's dtype, not float32")
change("16.5", "largest as scale", EIGHT, ("return numbers, scale", "return numbers, scale * 127"), truth="the scale is the largest size, not divided by 127")
change("16.5", "floor", EIGHT, (".round()", ".floor()"), truth="rounds down instead of to the nearest")
change("16.5", "float numbers", EIGHT, (".to(torch.int8)", ""), truth="the numbers are not int8")
change("16.5", "order of results", EIGHT, ("return numbers, scale", "return scale, numbers"), truth="scale and numbers are returned in the wrong order")
change("16.5", "int32", EIGHT, ("torch.int8", "torch.int32"), truth="the numbers are int32 instead of int8")
change("16.5", "shifted range", EIGHT, (".round().to(torch.int8)", ".round().add(127).clamp(0, 127).to(torch.int8)"), truth="numbers from 0 to 254 are shifted by 127: the scale alone does not give the weight back")
right("16.5", "row by row, numpy", """
def quantize_rows(weight):
    import numpy as np
    w = weight.detach().to(torch.float32).numpy()
    numbers, scale = np.zeros(w.shape, np.int8), np.zeros(len(w), np.float32)
    for r, row in enumerate(w):
        largest = np.abs(row).max()
        if largest > 0:
            scale[r] = largest / np.float32(127)
            numbers[r] = np.rint(row / scale[r])
    return torch.from_numpy(numbers), torch.from_numpy(scale)
""")

# --- 16.6 -------------------------------------------------------------------------------------------------------------

LINEAR = """
class EightBitLinear(nn.Module):
    def __init__(self, numbers, scale, bias=None):
        super().__init__()
        self.register_buffer("numbers", numbers)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x):
        out = F.linear(x.float(), self.numbers.float()) * self.scale
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype)
"""
change("16.6", "wide copy kept", LINEAR, ('self.register_buffer("numbers", numbers)', 'self.register_buffer("numbers", numbers.float())'), truth="keeps a wide float copy of the matrix instead of the 8-bit one")
change("16.6", "wide weight beside", LINEAR, ('self.register_buffer("scale", scale)', 'self.register_buffer("scale", scale)\n        self.register_buffer("weight", numbers.float() * scale[:, None])'), ("F.linear(x.float(), self.numbers.float()) * self.scale", "F.linear(x.float(), self.weight)"), truth="keeps a wide copy beside the 8-bit matrix")
change("16.6", "bias forgotten", LINEAR, ("            out = out + self.bias", "            pass"), truth="the bias is not added")
change("16.6", "bias scaled", LINEAR, ("        out = F.linear(x.float(), self.numbers.float()) * self.scale\n        if self.bias is not None:\n            out = out + self.bias\n", "        out = F.linear(x.float(), self.numbers.float())\n        if self.bias is not None:\n            out = out + self.bias\n        out = out * self.scale\n"), truth="the bias is multiplied by the scale")
change("16.6", "scale forgotten", LINEAR, (" * self.scale", ""), truth="the scale is not used")
change("16.6", "divided by the scale", LINEAR, (" * self.scale", " / self.scale"), truth="divides by the scale")
change("16.6", "result float32", LINEAR, ("return out.to(x.dtype)", "return out"), truth="the result is float32, not the dtype of x")
change("16.6", "plain attributes", LINEAR, ('self.register_buffer("numbers", numbers)', "self.numbers = numbers"), ('self.register_buffer("scale", scale)', "self.scale = scale"), ('self.register_buffer("bias", bias)', "self.bias = bias"), truth="the tensors are plain attributes, not buffers: they are not saved with the module")
change("16.6", "scale a plain attribute", LINEAR, ('self.register_buffer("scale", scale)', "self.scale = scale"), truth="the scale is a plain attribute, not a buffer")
change("16.6", "parameters", LINEAR, ('self.register_buffer("scale", scale)', "self.scale = nn.Parameter(scale)"), truth="scale is a parameter instead of a buffer")
change("16.6", "not persistent", LINEAR, ('"numbers", numbers)', '"numbers", numbers, persistent=False)'), ('"scale", scale)', '"scale", scale, persistent=False)'), truth="the buffers are not persistent, so they are not saved")
change("16.6", "bias always", LINEAR, ("        if self.bias is not None:\n            out = out + self.bias\n", "        out = out + self.bias\n"), truth="fails without a bias")
change("16.6", "x rounded to int8", LINEAR, ("F.linear(x.float(), self.numbers.float())", "F.linear(x.to(torch.int8).float(), self.numbers.float())"), truth="x is cut to int8 to multiply whole numbers")
change("16.6", "transposed", LINEAR, ("F.linear(x.float(), self.numbers.float()) * self.scale", "F.linear(x.float(), self.numbers.float().T)"), truth="multiplies with the matrix the wrong way round")
change("16.6", "int8 with float", LINEAR, ("F.linear(x.float(), self.numbers.float())", "x @ self.numbers.T"), truth="multiplies an int8 matrix with a float one, which torch refuses")
change("16.6", "scale over the columns", LINEAR, ("F.linear(x.float(), self.numbers.float()) * self.scale", "F.linear(x.float(), self.numbers.float() * self.scale.mean())"), truth="the scale is multiplied along the columns: it belongs to rows")
change("16.6", "two axes only", LINEAR, ("F.linear(x.float(), self.numbers.float()) * self.scale", "torch.einsum('nk,rk->nr', x.float(), self.numbers.float()) * self.scale"), truth="works for x with two axes only")
change("16.6", "bias dtype", LINEAR, ("        if self.bias is not None:\n            out = out + self.bias\n        return out.to(x.dtype)", "        out = out.to(x.dtype)\n        return out if self.bias is None else out + self.bias"), truth="adds the float32 bias last, so the result is float32 for bfloat16")
right("16.6", "wide weight in forward, other names", """
class EightBitLinear(nn.Module):
    def __init__(self, numbers, scale, bias=None):
        super().__init__()
        for name, tensor in {"q": numbers, "s": scale, "b": bias}.items():
            self.register_buffer(name, tensor)

    def forward(self, x):
        wide = self.q.to(torch.float32).mul(self.s.unsqueeze(1))
        y = torch.einsum("...k,rk->...r", x.to(torch.float32), wide)
        return (y if self.b is None else y + self.b).type_as(x)
""")

# --- 16.7 -------------------------------------------------------------------------------------------------------------

POINTS = {"A": "one row, 16 bits", "B": "one row, 8 bits", "C": "64 rows, 16 bits", "D": "64 rows, one thread of eight", "E": "prompt of 272 tokens"}
wrong("16.7", "bits exchanged", answer("names", exchange(POINTS, "A", "B")), truth="A is 16 bits and B 8 bits")
wrong("16.7", "threads exchanged", answer("names", exchange(POINTS, "C", "D")), truth="C is all threads, D is one thread of eight")
wrong("16.7", "rows and prompt exchanged", answer("names", exchange(POINTS, "C", "E")), truth="C is 64 rows, E is the prompt")
wrong("16.7", "one forgotten", answer("names", {k: v for k, v in POINTS.items() if k != "E"}), truth="there is no answer for E", says="the points are ['A', 'B', 'C', 'D'], expected ['A', 'B', 'C', 'D', 'E']")
