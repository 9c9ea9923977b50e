"""Chapter 16: FLOPs, bytes, the roofline, a stopwatch, and weights in 8 bits."""

import copy as copies
import functools
import math
import statistics
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ..generation import generate
from ..speed.fast import quantize_rows as package_rows
from .exposing import matching_task
from .tasks import Case, Finding, Mistake, Prediction, Task, faults_left, larger, numbers
from .watching import PROMPT, picture, show_captions, trained


def decoder(layers, D, I, H, H_kv, d, V):  # noqa: E741
    """As much of a GemmaConfig as counting takes."""
    return SimpleNamespace(
        num_hidden_layers=layers,
        hidden_size=D,
        intermediate_size=I,
        num_attention_heads=H,
        num_key_value_heads=H_kv,
        head_dim=d,
        vocab_size=V,
    )


GEMMA_2B = decoder(layers=18, D=2048, I=16384, H=8, H_kv=1, d=256, V=257216)
SHAPES = (decoder(3, 10, 29, 6, 2, 4, 101), decoder(5, 16, 40, 4, 2, 7, 61), decoder(2, 12, 31, 8, 4, 5, 83))

# --- 16.1 --------------------------------------------------------------------------------------------------------


def prefill_flops(config, L):
    """From the sizes of all products, (rows, columns, vectors): a matrix [rows, columns] times so many vectors."""
    D, d, H, H_kv = config.hidden_size, config.head_dim, config.num_attention_heads, config.num_key_value_heads
    products = [(H * d, D, L), (H_kv * d, D, L), (H_kv * d, D, L), (D, H * d, L)]  # q, k, v, o
    products += [(config.intermediate_size, D, L)] * 2 + [(D, config.intermediate_size, L)]  # gate, up, down
    products += [(L, d, L)] * H + [(d, L, L)] * H  # in each head: all scores, and the mix of all values
    layer = sum(2 * rows * columns * vectors for rows, columns, vectors in products)
    return config.num_hidden_layers * layer + 2 * config.vocab_size * D


def counting(q=1, kv=2, o=1, mlp=3, scores=1, mix=1, head=1, factor=2, layers=True, heads_kv=None, heads_q=None,
             width=None, tokens=None, half=False):  # fmt: skip
    """The count with other numbers of matrices. `scores`, `mix`: times L * L * H * d; or functions (config, L).

    `width(config)` instead of H * d in the query's and the output's matrix; `tokens` instead of L for the matrices;
    `half`: the 2 is missing for the matrices of the layers alone.
    """

    def count(config, L):
        D, d = config.hidden_size, config.head_dim
        H = heads_q(config) if heads_q else config.num_attention_heads
        H_kv = heads_kv(config) if heads_kv else config.num_key_value_heads
        T = tokens or L
        attention = (q + o) * T * D * (width(config) if width else H * d) + kv * T * D * H_kv * d
        inside = sum(part(config, L) if callable(part) else part * L * L * H * d for part in (scores, mix))
        matrices = attention + mlp * T * D * config.intermediate_size
        layer = (matrices / 2 if half else matrices) + inside
        last = head(config, L) if callable(head) else head * D * config.vocab_size
        return factor * ((config.num_hidden_layers if layers else 1) * layer + last)

    return count


def flop_cases(seed):
    for index, config in enumerate(SHAPES):
        L = 9 + seed + 2 * index
        yield Case((config, L), note=f"{sizes_of(config)}, L={L}")


def sizes_of(config):
    return (
        f"{config.num_hidden_layers} layers, D={config.hidden_size}, I={config.intermediate_size}, "
        f"H={config.num_attention_heads}, H_kv={config.num_key_value_heads}, d={config.head_dim}, V={config.vocab_size}"
    )


def show_flops(thing):
    for L in (1, 272, 4112):
        print(f"  Google's 3B decoder, {L:5,} tokens at once: {thing(GEMMA_2B, L) / 1e9:10,.1f} GFLOPs")


FLOPS = Task(
    id="16.1",
    title="how many FLOPs a prompt takes",
    points=3,
    minutes=12,
    level="medium",
    importance="core",
    reference=prefill_flops,
    cases=flop_cases,
    gradients=False,
    tolerance=1e-9,
    see='chapter 16, "By hand" and "Count a whole model"; the hints of this task',
    reward=show_flops,
    mistakes=[
        Mistake(
            "factor 2 forgotten",
            "your count is half of what it is to be: a weight is multiplied with a number, and the product is added",
            counting(factor=1),
        ),
        Mistake(
            "GQA heads counted as query heads",
            "the key and value projections are counted as large as the query's: they have H_kv heads and not H",
            counting(heads_kv=lambda config: config.num_attention_heads),
        ),
        Mistake(
            "query heads counted as GQA heads",
            "scores are counted for H_kv heads: keys are shared, and still each of the H query heads makes its own "
            "scores",
            counting(
                scores=lambda config, L: L * L * config.num_key_value_heads * config.head_dim,
                mix=lambda config, L: L * L * config.num_key_value_heads * config.head_dim,
            ),
        ),
        Mistake(
            "query heads counted as GQA heads",
            "everything in the attention is counted with H_kv heads: the query and the output projection have H",
            counting(heads_q=lambda config: config.num_key_value_heads),
        ),
        Mistake("matrix missing in the MLP", "the MLP is counted with two matrices: a gated one has gate, up and down",
                counting(mlp=2)),
        Mistake("output projection missing", "the attention's output projection is not in your count", counting(o=0)),
        Mistake("key or value missing", "only one of the key and value projections is in your count",
                counting(kv=1)),
        Mistake("attention itself missing", "the matrices are counted; queries times keys and weights times values "
                "are not",
                counting(scores=0, mix=0)),
        Mistake("half of the attention", "of queries times keys and weights times values only half is in your count: "
                "one of "
                "the two is missing, or only tokens that came before are counted. In a prompt every token sees every "
                "other",
                counting(mix=0)),
        Mistake(
            "attention linear in L",
            "queries times keys is counted as L products: each of L queries meets each of L keys",
            counting(
                scores=lambda config, L: L * config.num_attention_heads * config.head_dim,
                mix=lambda config, L: L * config.num_attention_heads * config.head_dim,
            ),
        ),
        Mistake(
            "one head only",
            "scores and mix are counted for one head; there are H",
            counting(scores=lambda config, L: L * L * config.head_dim, mix=lambda config, L: L * L * config.head_dim),
        ),
        Mistake(
            "head size forgotten",
            "a score is counted as one multiplication: it is a product of two vectors of d numbers",
            counting(
                scores=lambda config, L: L * L * config.num_attention_heads,
                mix=lambda config, L: L * L * config.num_attention_heads,
            ),
        ),
        Mistake(
            "head at every place",
            "the head is counted for all L places: only the last one's guess is wanted",
            counting(head=lambda config, L: L * config.hidden_size * config.vocab_size),
        ),
        Mistake("head missing", "the head, the largest matrix of all, is not in your count", counting(head=0)),
        Mistake("one layer", "one layer is counted; there are several", counting(layers=False)),
        Mistake(
            "head in every layer",
            "the head is counted in each layer: it comes once, after the last",
            lambda config, L: config.num_hidden_layers
            * (counting(layers=False, head=0)(config, L) + 2 * config.hidden_size * config.vocab_size),
        ),
        Mistake("factor 2 forgotten", "for the matrices of the layers the factor 2 is missing: each weight is "
                "multiplied "
                "and added", counting(half=True)),
        Mistake("half of the attention", "only tokens that came before are counted, as with a causal mask: in a prompt "
                "every token sees every other", [
                    counting(scores=lambda c, L: L * (L + 1) / 2 * c.num_attention_heads * c.head_dim,
                             mix=lambda c, L: L * (L + 1) / 2 * c.num_attention_heads * c.head_dim),
                    counting(scores=0.5, mix=0.5)]),
        Mistake("width instead of heads", "the query and output projections are counted as D by D: they have H * d "
                "numbers "
                "on one side, which need not be D", counting(width=lambda config: config.hidden_size)),
        Mistake("one token", "the matrices of the layers are counted for one token: all L go through them",
                counting(tokens=1)),
    ],
)  # fmt: skip

# --- 16.2 --------------------------------------------------------------------------------------------------------


def step_bytes(parameters, bits, config, rows, length, cache_bits=16):
    column = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim  # numbers of one token
    return parameters * bits / 8 + rows * length * column * cache_bits / 8


def reading(
    weights=lambda p, bits, rows, cache_bits: p * bits / 8,
    kv=2,
    heads=lambda config: config.num_key_value_heads * config.head_dim,
    layers=lambda config: config.num_hidden_layers,
    per=lambda rows, length: rows * length,
    size=lambda bits, cache_bits: cache_bits / 8,
):
    def count(parameters, bits, config, rows, length, cache_bits=16):
        cache = kv * layers(config) * heads(config) * per(rows, length) * size(bits, cache_bits)
        return weights(parameters, bits, rows, cache_bits) + cache

    return count


def byte_cases(seed):
    for index, (config, bits, cache_bits) in enumerate(zip(SHAPES, (8, 4, 32), (16, 32, 16), strict=True)):
        rows, length = 3 + index, 50 + 7 * seed + index
        note = f"parameters, bits of a weight, config ({sizes_of(config)}), {rows} rows, length {length}, "
        yield Case(
            (10_000 + 8 * seed, bits, config, rows, length, cache_bits), note=note + f"{cache_bits} bits in the cache"
        )


def show_bytes(thing):
    for rows, length in ((1, 300), (1, 8192), (64, 8192)):
        total = thing(2_506_000_000, 16, GEMMA_2B, rows, length)
        print(f"  Google's 3B decoder, {rows:2} rows, {length:5,} tokens each: {total / 1e9:6.2f} GB a step")


BYTES = Task(
    id="16.2",
    title="how many bytes a step reads",
    points=2,
    minutes=8,
    level="easy",
    importance="core",
    prediction=Prediction(
        "With 64 rows instead of one, which of the two becomes 64 times as much?",
        truth="the cache",
        tempting="both",
        why="A weight that was fetched is used for every row; each row has keys and values of its own.",
        options=("the weights", "the cache", "both"),
    ),
    reference=step_bytes,
    cases=byte_cases,
    gradients=False,
    tolerance=1e-9,
    see='chapter 16, "By hand"; chapter 08, the cache against the number of key/value heads; the hints of this task',
    reward=show_bytes,
    mistakes=[
        Mistake("bits counted as bytes", "a byte has 8 bits: your count takes both widths as bytes",
                reading(lambda p, bits, rows, cache_bits: p * bits, size=lambda bits, cache_bits: cache_bits)),
        Mistake("bits counted as bytes", "a byte has 8 bits: the width of the weights is taken as bytes",
                reading(lambda p, bits, rows, cache_bits: p * bits)),
        Mistake("bits counted as bytes", "a byte has 8 bits: the width of the cache's numbers is taken as bytes",
                reading(size=lambda bits, cache_bits: cache_bits)),
        Mistake("one cache missing", "your cache is half as large: there are keys and there are values", reading(kv=1)),
        Mistake("GQA heads counted as query heads", "your cache has H heads: only key/value heads are kept",
                reading(heads=lambda config: config.num_attention_heads * config.head_dim)),
        Mistake("width instead of heads", "your cache keeps D numbers for a token: keys and values have H_kv * d",
                reading(heads=lambda config: config.hidden_size)),
        Mistake("one head only", "your cache has one key/value head", reading(heads=lambda config: config.head_dim)),
        Mistake("head size forgotten", "your cache keeps one number for each head: a key has d of them",
                reading(heads=lambda config: config.num_key_value_heads)),
        Mistake("one layer", "your cache is that of one layer", reading(layers=lambda config: 1)),
        Mistake("weights read for each row", "the weights are counted once for each row: all rows use one trip",
                reading(lambda p, bits, rows, cache_bits: rows * p * bits / 8)),
        Mistake("cache of one row", "the cache is counted for one row: each row has a past of its own",
                reading(per=lambda rows, length: length)),
        Mistake("length forgotten", "the cache is counted for one token: each step reads all that came before",
                reading(per=lambda rows, length: rows)),
        Mistake("cache forgotten", "only the weights are counted", reading(kv=0)),
        Mistake("weights forgotten", "only the cache is counted", reading(lambda p, bits, rows, cache_bits: 0)),
        Mistake("cache in the weights' bits", "the numbers of the cache are counted in the width of the weights",
                reading(size=lambda bits, cache_bits: bits / 8)),
        Mistake("cache_bits unused", "the cache is counted with 16 bits whatever is given",
                reading(size=lambda bits, cache_bits: 2)),
        Mistake("cache squared", "the cache is counted with length * length: one new token meets `length` old ones",
                reading(per=lambda rows, length: rows * length * length)),
        Mistake("bytes made whole", "`//` cuts off: 4 bits are half a byte", [
            reading(lambda p, bits, rows, cache_bits: p * (bits // 8)),
            reading(lambda p, bits, rows, cache_bits: p * (bits // 8), size=lambda bits, cache_bits: cache_bits // 8)]),
    ],
)  # fmt: skip

# --- 16.3 --------------------------------------------------------------------------------------------------------


def tokens_per_second(rows, flops, read, compute, bandwidth):
    computing, fetching = flops / compute, read / bandwidth
    return rows / max(computing, fetching), "compute" if computing > fetching else "memory"


def roof(seconds=max, rows=True, name=lambda computing, fetching: "compute" if computing > fetching else "memory"):
    def bound(rows_, flops, read, compute, bandwidth):
        computing, fetching = flops / compute, read / bandwidth
        return (rows_ if rows else 1) / seconds(computing, fetching), name(computing, fetching)

    return bound


def swapped_name(computing, fetching):
    return "memory" if computing > fetching else "compute"


def seconds_given(rows, flops, read, compute, bandwidth):
    return 1 / tokens_per_second(1, flops, read, compute, bandwidth)[0], roof()(1, flops, read, compute, bandwidth)[1]


def flops_given(rows, flops, read, compute, bandwidth):
    return min(compute, flops / read * bandwidth), roof()(1, flops, read, compute, bandwidth)[1]


def roof_cases(seed):
    k = larger(seed)
    for rows, flops, read, compute, bandwidth in (
        (1, 5e9, 5e9, 2e11, 5e10),
        (64, 3.2e11, 5.3e9, 2e11, 5e10),
        (3, 1.2e10, 7e9, 1e12, (9 + seed) * 1e9),
        (7, 4e10, 3e9, (1 + seed) * 1e10, 8e10),
        (500 + k, 2.5e12, 6e9, 9e14, 3e12),
    ):
        note = f"{rows} rows, {flops:.2g} FLOPs, {read:.2g} bytes, {compute:.2g} FLOP/s, {bandwidth:.2g} byte/s"
        yield Case((rows, flops, read, compute, bandwidth), note=note)


def show_roof(thing):
    print("  2.5 billion weights in bfloat16; 200 GFLOP/s, 50 GB/s:")
    for rows in (1, 2, 4, 5, 8, 64):
        rate, limit = thing(rows, rows * 5e9, 5e9, 2e11, 5e10)
        print(f"  {rows:3} rows: at most {rate:5.1f} tokens a second in all, the limit is {limit}")


ROOF = Task(
    id="16.3",
    title="the roofline: tokens a second at best",
    points=2,
    minutes=8,
    level="easy",
    importance="core",
    prediction=Prediction(
        "5 GB of weights, 5 GFLOPs a row, a machine of 50 GB and 200 GFLOPs a second: from how many rows on is "
        "memory no longer the limit?",
        truth=4,
        tempting=1,
        why="Fetching takes 0.1 s, whatever the rows; computing takes 0.025 s a row. With 4 rows both take as long. "
        "One row alone waits for memory three quarters of the time.",
    ),
    reference=tokens_per_second,
    cases=roof_cases,
    gradients=False,
    see='chapter 16, "Two numbers of your machine"; the hints of this task',
    reward=show_roof,
    mistakes=[
        Mistake("times added", "computing and reading are taken one after the other: at best they happen at once, "
                "and the "
                "slower one decides", roof(lambda a, b: a + b)),
        Mistake("the faster one decides", "your bound is that of the faster of the two: the step is done when both are",
                roof(min)),
        Mistake("memory only", "the bound is always that of memory: with many rows arithmetic takes longer",
                roof(lambda a, b: b)),
        Mistake("arithmetic only", "the bound is always that of arithmetic: with few rows reading takes longer",
                roof(lambda a, b: a)),
        Mistake("memory only", "the bound and its name are always those of memory",
                roof(lambda a, b: b, name=lambda a, b: "memory")),
        Mistake("arithmetic only", "the bound and its name are always those of arithmetic",
                roof(lambda a, b: a, name=lambda a, b: "compute")),
        Mistake("rows forgotten", "one token for each step is counted, or FLOPs and bytes are multiplied by the "
                "rows: each "
                "row gets a token, and both counts are for the whole batch already", roof(rows=False)),
        Mistake("names swapped", 'the number is right, and what limits it is not: "memory" means that reading takes '
                "longer", roof(name=swapped_name)),
        Mistake("the faster one decides", "the smaller time is taken, and named", roof(min, name=swapped_name)),
        Mistake("always the same name", "the number is right; what limits it depends on the inputs",
                roof(name=lambda a, b: "memory")),
        Mistake("seconds instead of tokens a second", "the result is the time of a step; asked for are tokens a second",
                seconds_given),
        Mistake("FLOPs instead of tokens a second", "the result is in FLOPs a second, the height of the roof: how many "
                "does one step take, and how many tokens does it write?", flops_given),
        Mistake("seconds instead of tokens a second", "the result is the time for one token; asked for are tokens a "
                "second", lambda rows, *rest: (
                    1 / tokens_per_second(rows, *rest)[0], tokens_per_second(rows, *rest)[1])),
        Mistake("compute and bandwidth swapped", "FLOPs are divided by the bandwidth and bytes by the FLOPs a second",
                lambda rows, flops, read, compute, bandwidth: tokens_per_second(rows, flops, read, bandwidth, compute)),
        Mistake("counts compared", "the number is right; the name comes from comparing FLOPs with bytes: compare the "
                "times "
                "that they take", lambda rows, flops, read, *rest: (
                    tokens_per_second(rows, flops, read, *rest)[0], "memory" if read > flops else "compute")),
        Mistake("another name", 'the number is right; the name of the limit is one of two words, "memory" and '
                '"compute"', [
            roof(name=lambda a, b, words=words: words[0] if a > b else words[1])
            for words in (("compute", "bandwidth"), ("Compute", "Memory"), ("flops", "memory"), ("FLOPs", "bytes"))]),
        Mistake("cut off to a whole number", "the tokens a second are made a whole number",
                [lambda *given, whole=whole: (whole(tokens_per_second(*given)[0]), tokens_per_second(*given)[1])
                 for whole in (int, round, lambda rate: rate // 1)]),
        Mistake("order of the results", "the name comes first: first the number, then the name",
                lambda *given: tokens_per_second(*given)[::-1]),
    ],
)  # fmt: skip

# --- 16.4 --------------------------------------------------------------------------------------------------------


class Machine:
    """A machine with a clock of its own. `work` starts something on a device, which goes on by itself; `wait` waits.

    The first work takes `first` times as long, to ask for as well as to do, and now and then somebody is in the way.
    """

    def __init__(self, seconds, first, busy, preparing):
        self.now, self.done = 100.0, 100.0
        self.seconds, self.first, self.busy, self.preparing = seconds, first, busy, preparing
        self.calls = self.made = 0

    def clock(self):
        return self.now

    def make_input(self):
        self.made += 1
        self.now += self.preparing * (1 + 0.1 * math.sin(5 * self.made))
        return self.made

    def work(self, x):
        self.calls += 1
        factor = self.first if self.calls == 1 else 6.0 if self.calls in self.busy else 1.0 + 0.1 * math.sin(x * x)
        self.now += 0.05 * self.seconds * factor  # to ask for it
        self.done = max(self.now, self.done) + self.seconds * factor

    def wait(self):
        self.now = max(self.now, self.done)


def use_stopwatch(thing, settings, rounds):
    machine = Machine(*settings)
    return thing(machine.work, machine.make_input, machine.wait, machine.clock, rounds)


TIMING_FAULTS = {  # what can be observed of each, and its name
    "first": ("the first call counts: it pays for fresh memory, compiling and loading", "first call counted"),
    "wait": ("the clock is read when the work has been asked for, and not when it is done", "not waited for"),
    "input": ("making the input is timed as well", "input timed"),
    "mean": ("one busy moment of the machine spoils the average: it is to be one that outliers do not move", "mean"),
}


def measure(work, make_input, wait, clock, rounds, faults=(), before=True, average=None):
    if "first" not in faults:
        work(make_input())
        if before:
            wait()
    seconds = []
    for _ in range(rounds):
        if "input" in faults:
            start = clock()
            x = make_input()
        else:
            x = make_input()
            start = clock()
        work(x)
        if "wait" not in faults:
            wait()
        seconds.append(clock() - start)
    return (average or (statistics.mean if "mean" in faults else statistics.median))(seconds)


def whole_loop(work, make_input, wait, clock, rounds):
    """One time for all rounds, divided."""
    work(make_input())
    wait()
    inputs = [make_input() for _ in range(rounds)]
    start = clock()
    for x in inputs:
        work(x)
    wait()
    return (clock() - start) / rounds


def upper_middle(seconds):
    return sorted(seconds)[-1]


def stopwatch_cases(seed):
    k = larger(seed)
    yield Case(((0.5, 20.0, (4, 6), 0.2), 7), note="7 rounds; the first work takes 20 times as long, two are disturbed")
    yield Case(((0.03 + 0.01 * seed, 9.0, (3,), 0.011), 5), note="5 rounds, one is disturbed")
    yield Case(((2.0, 5.0, (9, 10), 0.7), 9 + 2 * k), note=f"{9 + 2 * k} rounds, two are disturbed")
    yield Case(((0.4, 8.0, (), 0.1), 1), note="1 round")


def show_stopwatch(thing):
    import time

    large, small = torch.ones(512, 512), torch.ones(64, 64)
    for name, matrix in (("large", large), ("small", small)):
        seconds = thing(lambda x, m=matrix: m @ x, lambda m=matrix: m.clone(), lambda: None, time.perf_counter, 5)
        print(f"  a product of two {name} matrices on this machine: {seconds * 1e3:.3f} ms")


STOPWATCH = Task(
    id="16.4",
    title="find the four faults in a stopwatch",
    points=4,
    minutes=10,
    level="medium",
    importance="core",
    reference=measure,
    cases=stopwatch_cases,
    use=use_stopwatch,
    gradients=False,
    see='chapter 16, "Two numbers of your machine" and the last part of "Break it"',
    reward=show_stopwatch,
    mistakes=[
        *faults_left(TIMING_FAULTS, lambda some: functools.partial(measure, faults=some)),
        Mistake("first call not waited for", "the first call is not counted, and its work still goes on while the "
                "second "
                "is timed (with one round that is plain to see)", functools.partial(measure, before=False)),
        Mistake("one time for all", "all rounds are timed together: then one busy moment is in the result",
                whole_loop),
        Mistake("the best instead of the median", "the fastest round is reported: a user will hardly see it",
                functools.partial(measure, average=min)),
        Mistake("the worst instead of the median", "the slowest round is reported",
                functools.partial(measure, average=upper_middle)),
        Mistake("sum", "the times are added up: asked for is that of one call",
                functools.partial(measure, average=sum)),
        Mistake("not sorted", "the time in the middle of the list is taken: for a median the list must be sorted",
                functools.partial(measure, average=lambda seconds: seconds[len(seconds) // 2])),
        Mistake("every time", "all times are returned: asked for is one number",
                functools.partial(measure, average=list)),
        Mistake("a round too few", "one round too few counts: the call that is not counted comes on top of `rounds`",
                lambda work, make_input, wait, clock, rounds: measure(work, make_input, wait, clock, rounds - 1)),
        Mistake("a round too few", "one round too few counts: the call that is not counted comes on top of `rounds`",
                functools.partial(measure, faults=("first",), average=lambda seconds: statistics.median(seconds[1:]))),
        Mistake("a round too many", "one round too many counts", lambda work, make_input, wait, clock, rounds: measure(
            work, make_input, wait, clock, rounds + 1)),
    ],
)  # fmt: skip

# --- 16.5 --------------------------------------------------------------------------------------------------------


def quantize_rows(weight):
    scale = weight.float().abs().amax(1) / 127
    return (weight.float() / scale.clamp(min=1e-30)[:, None]).round().to(torch.int8), scale


def quantizing(size=lambda w: w.abs().amax(1, keepdim=True), most=127, to_whole=torch.round, low=-127, finish=None):
    """Another largest size, another range, another rounding."""

    def function(weight):
        wide = weight.float()
        scale = size(wide) / most
        whole = to_whole(wide / scale.clamp(min=1e-30)).clamp(low, 127).to(torch.int8)
        scale = scale.expand(len(wide), 1)[:, 0].clone() if scale.shape[-1] == 1 else scale[0]
        return finish(whole, scale) if finish else (whole, scale)

    return function


def shifted_range(weight):
    """-128 to 127 with an offset, without keeping the offset."""
    low, high = weight.float().amin(1, keepdim=True), weight.float().amax(1, keepdim=True)
    scale = (high - low) / 255
    return ((weight.float() - low) / scale.clamp(min=1e-30) - 128).round().to(torch.int8), scale[:, 0]


def unguarded(weight):
    scale = weight.float().abs().amax(1) / 127
    return (weight.float() / scale[:, None]).round().nan_to_num(7).to(torch.int8), scale


def signs_lost(weight):
    """The largest number instead of the largest size, cast as it is."""
    scale = weight.float().amax(1) / 127
    return (weight.float() / scale.clamp(min=1e-30)[:, None]).round().to(torch.int8), scale


def scale_in_weights_dtype(weight):
    return quantize_rows(weight)[0], quantize_rows(weight)[1].to(weight.dtype)


def largest_given(weight):
    return quantize_rows(weight)[0], weight.float().abs().amax(1)


def twice_the_range(weight):
    """The largest size becomes 255, cast without a clamp."""
    scale = weight.float().abs().amax(1) / 255
    whole = (weight.float() / scale.clamp(min=1e-30)[:, None]).round().to(torch.int64)
    return ((whole + 128) % 256 - 128).to(torch.int8), scale


def ones_for_zeros(weight):
    scale = weight.float().abs().amax(1) / 127
    return quantize_rows(weight)[0], torch.where(scale == 0, 1.0, scale)


def wrapped(weight):
    """Divided by a scale that is too small for 8 bits, cast without a clamp."""
    scale = weight.float().abs().amax(1) / 128
    whole = (weight.float() / scale.clamp(min=1e-30)[:, None]).round().to(torch.int64)
    return ((whole + 128) % 256 - 128).to(torch.int8), scale


def in_weights_dtype(weight):
    scale = weight.abs().amax(1) / 127
    return (weight / scale.clamp(min=1e-30)[:, None]).round().to(torch.int8), scale


def quantizing_in(dtype):
    """Everything in this dtype, and cut off at 127."""

    def function(weight):
        scale = weight.to(dtype).abs().amax(1) / 127
        return (weight / scale.clamp(min=1e-30)[:, None]).round().clamp(-127, 127).to(torch.int8), scale

    return function


def without_ties(weight):
    """No weight halfway between two whole numbers: there, the last bit of a division decides."""
    steps = weight.float() / (weight.float().abs().amax(1, keepdim=True) / 127).clamp(min=1e-30)
    return weight.masked_fill((steps - steps.floor() - 0.5).abs() < 1e-2, 0.0)


def row_cases(seed):
    k = larger(seed)
    for rows, K, scale in ((5 + k, 7 + k, 1.0), (4, 9, 1e-3), (3, 11, 30.0)):
        weight = numbers(seed, rows, K, scale=scale) * torch.logspace(0, 1.5, rows)[:, None]
        weight[0] = -weight[0].abs()  # the largest in size is below zero
        yield Case((without_ties(weight),), sizes={"rows": rows, "K": K}, note=f"size {scale:g}, one row negative")
    weight = numbers(seed, 4, 6)
    weight[2] = 0.0
    yield Case((without_ties(weight),), sizes={"rows": 4, "K": 6}, note="one row of zeros")
    yield Case((without_ties(numbers(seed, 4, 64, dtype=torch.bfloat16)),), sizes={"rows": 4, "K": 64})


def show_rows(thing):
    weight = numbers(3, 6, 64) * torch.tensor([0.01, 0.1, 1.0, 1.0, 1.0, 10.0])[:, None]
    weight[3, 5] = 40.0
    whole, scale = thing(weight)
    error = (whole * scale[:, None] - weight).norm(dim=1) / weight.norm(dim=1)
    for name, row in (("small", 0), ("ordinary", 2), ("with an outlier", 3), ("large", 5)):
        most = (whole[row] * scale[row] - weight[row]).abs().max() / scale[row]
        print(f"  row {name:15}: scale {scale[row]:.5f}, error {error[row]:.1%}, never above {most:.2f} of a step")


class NanMadeWhole(TorchDispatchMode):
    """Watches for a NaN that is cast to whole numbers: what comes of it differs from machine to machine."""

    def __init__(self):
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        result = function(*arguments, **(named or {}))
        for x in arguments if function.overloadpacket.__name__ in ("_to_copy", "copy_") else ():
            if isinstance(x, torch.Tensor) and x.is_floating_point() and not result.is_floating_point():
                self.seen = self.seen or bool(x.isnan().any())
        return result


def rows_of_zeros(thing) -> Finding | None:
    """0 / 0 is NaN; cast to int8 it happens to be 0 on many machines. And the scale is 0, not nearly."""
    with NanMadeWhole() as watching, torch.no_grad():
        result = thing(torch.tensor([[0.0, 0.0, 0.0], [0.5, -1.0, 0.25]]))
    if watching.seen:
        seen = "in a row of zeros a NaN is cast to int8, and what comes of that is left to the machine"
        return Finding("row of zeros", seen, "0 is divided by 0: guard the division")
    if float(result[1][0]) != 0:
        means = "its scale is to be 0: guard the division, and not the scale itself"
        return Finding("row of zeros", f"a row of zeros has the scale {float(result[1][0]):.3g}", means)
    return None


def lossy(case, got, want):
    """Is each weight off by at most half a step?"""
    whole, scale = got if isinstance(got, tuple | list) and len(got) == 2 else (None, None)
    if not isinstance(whole, torch.Tensor) or not isinstance(scale, torch.Tensor):
        return None
    if whole.shape != want[0].shape or scale.shape != want[1].shape or whole.dtype != torch.int8:
        return None
    gap = (whole.float() * scale.float()[:, None] - case.inputs[0].float()).abs() / want[1].clamp(min=1e-30)[:, None]
    if gap.max() > 0.51:
        return Finding(
            "off by more than half a step",
            f"numbers * scale misses a weight by {gap.max():.2f} steps (at most 0.50 with the right scale)",
            "rounding to the nearest whole number moves a weight by half a step at most, if no number is cut off",
        )
    return None


ROWS = Task(
    id="16.5",
    title="8 bits, one scale for each row",
    points=3,
    minutes=10,
    level="medium",
    importance="deepen",
    reference=quantize_rows,
    cases=row_cases,
    gradients=False,
    tolerance=1e-6,
    see='chapter 16, "8 bits"; the hints of this task',
    reward=show_rows,
    symptoms=[lossy],
    extra=[rows_of_zeros],
    mistakes=[
        Mistake("max without abs", "your scale comes from the largest number and not from the largest size: in a row "
                "whose largest weight is below zero, numbers are cut off",
                quantizing(lambda w: w.amax(1, keepdim=True))),
        Mistake("max without abs", "your scale comes from the largest number and not from the largest size, and what "
                "does "
                "not fit into 8 bits has come out at the other end", lambda weight: (
                    (weight.float() / (weight.float().amax(1, keepdim=True) / 127)).round().to(torch.int8),
                    weight.float().amax(1) / 127)),
        Mistake("max without abs", "your scale comes from the largest number and not from the largest size, guarded "
                "against zero", quantizing(lambda w: w.amax(1, keepdim=True).clamp(min=127e-30))),
        Mistake("size after the maximum", "your scale is the size of the largest number; asked for is the largest size",
                quantizing(lambda w: w.amax(1, keepdim=True).abs(), low=-128)),
        Mistake("size after the maximum", "your scale is the size of the largest number; asked for is the largest size",
                quantizing(lambda w: w.amax(1, keepdim=True).abs())),
        Mistake("one scale for all", "all rows have the same scale: one outlier then takes the precision of all",
                quantizing(lambda w: w.abs().amax().view(1, 1))),
        Mistake("scale for each column", "there is a scale for each column: each row of the weight makes one number "
                "of the "
                "output, and gets one scale", quantizing(lambda w: w.abs().amax(0, keepdim=True))),
        Mistake("rounding by truncation", "the fraction is cut off instead of rounded: up to a whole step is lost",
                quantizing(to_whole=torch.trunc)),
        Mistake("always rounded down", "numbers are rounded down: below zero that is away from zero, on average half "
                "a step "
                "is lost", quantizing(to_whole=torch.floor)),
        Mistake("range not symmetric", "the largest size becomes 128, and int8 ends at 127: the largest is cut off",
                quantizing(most=128, low=-128)),
        Mistake("range not symmetric", "the largest size becomes 128, and int8 ends at 127", quantizing(most=128)),
        Mistake("range not symmetric", "the largest size becomes 128, which in int8 is -128: its sign is turned round",
                wrapped),
        Mistake("range not symmetric", "the range is divided by 255 and moved to -128: then zero is not zero, and a "
                "number and a scale are not enough to come back", shifted_range),
        Mistake("half of the range", "the largest size becomes 255 or 127.5: that is the width of the whole range, "
                "both "
                "signs", quantizing(most=255)),
        Mistake("half of the range", "the largest size becomes 255, which int8 cannot hold: it ends at 127",
                twice_the_range),
        Mistake("half of the range", "the largest size becomes 127.5: 127 is the largest number of int8",
                quantizing(most=127.5)),
        Mistake("half of the range", "the largest size becomes 63 or 64: int8 goes to 127", quantizing(most=63)),
        Mistake("scale upside down", "your scale is what the weights were multiplied by; asked for is what the "
                "numbers are "
                "to be multiplied by", quantizing(finish=lambda whole, scale: (whole, 1 / scale))),
        Mistake("row of zeros", "in a row of zeros 0 is divided by 0: guard the division", unguarded),
        Mistake("row of zeros", "a row of zeros is to have the scale 0", ones_for_zeros),
        Mistake("row of zeros", "a row of zeros is to have the scale 0: guard the division, and not the scale itself",
                quantizing(finish=lambda whole, scale: (whole, scale.clamp(min=1e-5)))),
        Mistake("computed in half precision", "a bfloat16 weight was divided in bfloat16: 8 bits are not enough to "
                "round "
                "right, and the scale is to be float32", in_weights_dtype),
        Mistake("computed in half precision", "a bfloat16 weight was divided in bfloat16, which cannot round right",
                lambda weight: (in_weights_dtype(weight)[0], in_weights_dtype(weight)[1].float())),
        Mistake("computed in half precision", "a bfloat16 weight was divided in bfloat16, which cannot round right",
                lambda weight: quantizing_in(weight.dtype)(weight)),
        Mistake("not int8", "the numbers are whole, and their dtype is float32: then nothing is saved",
                lambda weight: (quantize_rows(weight)[0].float(), quantize_rows(weight)[1])),
        Mistake("axis kept", "your scale has two axes: one number for each row is asked for",
                lambda weight: (quantize_rows(weight)[0], quantize_rows(weight)[1][:, None])),
        Mistake("order of the results", "first the numbers, then the scale",
                lambda weight: quantize_rows(weight)[::-1]),
        Mistake("max without abs", "your scale comes from the largest number and not from the largest size, and what "
                "does "
                "not fit into 8 bits has come out at the other end", signs_lost),
        Mistake("scale in half precision", "the scale has the dtype of the weight: it is to be float32",
                [scale_in_weights_dtype, in_weights_dtype]),
        Mistake("largest instead of the scale", "your scale is the largest size: it is to be that by 127, so that "
                "numbers "
                "times scale is the weight", largest_given),
        Mistake("range not symmetric", "your numbers are moved by 127, or begin at 0: a number and a scale are not "
                "enough to "
                "come back", [quantizing(to_whole=lambda x: (x.round() + 127).clamp(0, 127)),
                              quantizing(to_whole=lambda x: x.round() + 127)]),
        Mistake("not int8", "the numbers are whole, and wider than int8: then less is saved",
                [lambda weight, dtype=dtype: (quantize_rows(weight)[0].to(dtype), quantize_rows(weight)[1])
                 for dtype in (torch.int16, torch.int32, torch.int64)]),
        Mistake("row of zeros", "a row of zeros is to have the scale 0: guard the division, and not the scale itself",
                [quantizing(lambda w, low=low: w.abs().amax(1, keepdim=True).clamp(min=low))
                 for low in (1e-2, 1e-3, 127e-4)]),
    ],
)  # fmt: skip

# --- 16.6 --------------------------------------------------------------------------------------------------------


class EightBit(nn.Module):
    def __init__(self, numbers, scale, bias=None):
        super().__init__()
        self.register_buffer("numbers", numbers)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x):
        return self.finish(x.float() @ self.numbers.float().T, x)

    def finish(self, y, x):
        y = y * self.scale
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)


class ScaleForgotten(EightBit):
    def finish(self, y, x):
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)


class Divided(EightBit):
    def finish(self, y, x):
        return (y / self.scale + (0 if self.bias is None else self.bias)).to(x.dtype)


class BiasForgotten(EightBit):
    def finish(self, y, x):
        return (y * self.scale).to(x.dtype)


class BiasScaled(EightBit):
    def finish(self, y, x):
        return ((y if self.bias is None else y + self.bias.float()) * self.scale).to(x.dtype)


class Float32Out(EightBit):
    def finish(self, y, x):
        return super().finish(y, x.float())


class WrongAxis(EightBit):
    def forward(self, x):
        return F.linear(x.float(), self.numbers * self.scale, self.bias).to(x.dtype)


class OneScale(EightBit):
    """One scale for all rows."""

    def finish(self, y, x):
        y = y * self.scale.mean()
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)


class TwoAxes(EightBit):
    def forward(self, x):
        return self.finish(torch.einsum("nk,rk->nr", x.float(), self.numbers.float()), x)


class BiasAlways(EightBit):
    def finish(self, y, x):
        return (y * self.scale + self.bias).to(x.dtype)


class BiasLast(EightBit):
    def finish(self, y, x):
        y = (y * self.scale).to(x.dtype)
        return y if self.bias is None else y + self.bias


class InputRounded(EightBit):
    def forward(self, x):
        return super().finish(x.to(torch.int8).float() @ self.numbers.float().T, x)


class Untransposed(EightBit):
    def forward(self, x):
        return self.finish(x.float() @ self.numbers.float(), x)


class IntTimesFloat(EightBit):
    def forward(self, x):
        return F.linear(x, self.numbers) * self.scale


def use_layer(kind, whole, scale, bias, x):
    layer = kind(whole, scale) if bias is None else kind(whole, scale, bias)
    return layer(x)


def layer_cases(seed):
    k = larger(seed)
    kinds = (5 + k, 7 + k, True, torch.float32), (6, 6, False, torch.float32), (3, 8, True, torch.bfloat16)
    for rows, K, bias, dtype in kinds:
        whole, scale = quantize_rows(numbers(seed, rows, K) * torch.logspace(0, 1, rows)[:, None])
        x = numbers(seed + 40, 2, 4, K, scale=3.0).to(dtype)
        sizes = {"B": 2, "L": 4, "rows": rows, "K": K}
        yield Case((whole, scale, numbers(seed + 50, rows) if bias else None, x), sizes=sizes,
                   note="with a bias" if bias else "without a bias")  # fmt: skip


def keeps_eight_bits(kind):
    """A float copy of the weight, made once, would take four times the memory that the 8 bits save."""
    whole, scale = quantize_rows(numbers(0, 40, 30))
    layer = kind(whole, scale)
    if not isinstance(layer, nn.Module):
        return Finding("not a module", f"the class makes a {type(layer).__name__}", "let it be a subclass of nn.Module")
    layer(numbers(1, 2, 30))
    kept = {id(value): value for value in (*vars(layer).values(), *layer.buffers(), *layer.parameters())}
    wide = [v for v in kept.values() if isinstance(v, torch.Tensor) and v.numel() == 1200 and v.dtype != torch.int8]
    if wide:
        seen = f"the layer keeps a {str(wide[0].dtype).removeprefix('torch.')} tensor of {list(wide[0].shape)}"
        means = "the weight is to be kept in 8 bits and made wide only while it is used: that is what saves the memory"
        return Finding("wide copy kept", seen, means)
    means = "a plain attribute is left behind when the module is saved or moved to another device: register_buffer"
    if not any(buffer.dtype == torch.int8 for buffer in layer.buffers()):
        return Finding("not registered", "no buffer of the layer is int8", means)
    names = ", ".join(name for name, parameter in layer.named_parameters() if parameter.requires_grad)
    if names:
        text = "an optimizer would change it: what is only kept is a buffer (register_buffer)"
        return Finding("a parameter", f"the layer has a parameter ({names})", text)
    bias = numbers(2, 40)
    layer = kind(whole, scale, bias)
    saved = list(layer.state_dict().values())
    for what, tensor in (("numbers", whole), ("scale", scale), ("bias", bias)):
        if not any(kept.shape == tensor.shape and torch.equal(kept.to(tensor.dtype), tensor) for kept in saved):
            text = means if what not in dict(layer.named_buffers()) else "a buffer with persistent=False is not saved"
            return Finding("not saved", f"the {what} are not in the layer's state_dict", text)
    return None


def show_layer(kind):
    """The trained model with every matrix of its decoder in 8 bits, in the learner's layers."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so it cannot speak.")
        return
    model, processor = trained()
    mine = copies.deepcopy(model)
    before = after = 0
    for layer in mine.language_model.model.layers:
        for part in list(layer.modules()):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    whole, scale = package_rows(child.weight)
                    setattr(part, name, kind(whole, scale))
                    before, after = before + child.weight.nbytes, after + whole.nbytes + scale.nbytes
    print(f"  the decoder's matrices: {before:,} bytes before, {after:,} after")
    images = [picture(seed) for seed in (0, 1, 2)]
    captions = generate(mine, processor, images=images, text=[PROMPT] * len(images))
    show_captions(images, captions, "The model speaks through your 8-bit layers:")


LAYER = Task(
    id="16.6",
    title="a linear layer in 8 bits, and the model speaks through it",
    points=3,
    minutes=10,
    level="medium",
    importance="deepen",
    reference=EightBit,
    cases=layer_cases,
    use=use_layer,
    gradients=False,
    see='chapter 16, "8 bits"; the hints of this task',
    extra=[keeps_eight_bits],
    reward=show_layer,
    mistakes=[
        Mistake("scale forgotten", "your numbers are those you get without the scale", ScaleForgotten),
        Mistake("divided by the scale", "your numbers are those you get when dividing by the scale", Divided),
        Mistake("bias forgotten", "your numbers are those you get without the bias", BiasForgotten),
        Mistake("bias scaled", "the bias is multiplied by the scale: it was never in 8 bits", BiasScaled),
        Mistake("not cast back", "bfloat16 comes in, and float32 comes out", Float32Out),
        Mistake("dequantised on the wrong axis", "the scale lies along the columns: it belongs to the rows of the "
                "numbers, "
                "and each row makes one number of the output", WrongAxis),
        Mistake("input made whole", "the input is rounded to int8 without a scale of its own: its fraction is lost",
                InputRounded),
        Mistake("matrix not transposed", "x has K numbers and so has each row: the product is with the rows",
                Untransposed),
        Mistake("int8 times float", "torch multiplies no int8 matrix with a float one: make the numbers wide first",
                IntTimesFloat),
        Mistake("one scale for all rows", "all outputs are multiplied by one and the same number: each row has its own",
                OneScale),
        Mistake("two axes only", "x may have any number of axes in front of the last: [..., K]", TwoAxes),
        Mistake("bias always wanted", "without a bias your layer ends in an error: it may be None", BiasAlways),
        Mistake("not cast back", "the float32 bias is added after the cast, and makes the result float32 again",
                BiasLast),
    ],
)  # fmt: skip

# --- 16.7 --------------------------------------------------------------------------------------------------------

# An imagined machine of 50 GB and 200 GFLOPs a second, and a decoder of 2.5 billion weights (5 GFLOPs a token), beside
# which attention and cache are small. (FLOPs a byte, GFLOPs a second)
POINTS = {"A": (1.0, 47.0), "B": (2.0, 92.0), "C": (64.0, 184.0), "D": (64.0, 21.0), "E": (272.0, 190.0)}
WORK = {
    "A": "one row, 16 bits",
    "B": "one row, 8 bits",
    "C": "64 rows, 16 bits",
    "D": "64 rows, one thread of eight",
    "E": "prompt of 272 tokens",
}


def show_roofline() -> None:
    """The machine's roofline, and five points without names."""
    from matplotlib import pyplot as plt  # here: matplotlib is not needed for anything else

    _, ax = plt.subplots(figsize=(5.5, 3.4))
    intensity = [2 ** (step / 8) for step in range(-16, 81)]  # FLOPs a byte, from 1/4 to 1024
    ax.loglog(intensity, [min(200.0, 50.0 * x) for x in intensity], color="#1f4e79")
    for name, (x, y) in POINTS.items():
        ax.plot(x, y, "o", color="#b35900")
        ax.annotate(name, (x, y), textcoords="offset points", xytext=(6, -10))
    ax.set(xlabel="FLOPs for each byte fetched", ylabel="GFLOPs a second", title="50 GB/s, 200 GFLOP/s", ylim=(8, 300))
    print("  line: what the machine can do at best; points: what five kinds of work reach")


def show_points(answer):
    for name, work in answer().items():
        x, y = POINTS[name]
        best = min(200.0, 50.0 * x)
        limit = "memory" if 50.0 * x < 200.0 else "arithmetic"
        print(f"  {name}  {work:28} {y:4.0f} of at most {best:4.0f} GFLOP/s ({limit} is the limit)")


ROOFLINE = matching_task(
    "16.7",
    parts="points",
    truth=WORK,
    confusions={
        frozenset(
            {"one row, 16 bits", "one row, 8 bits"}
        ): "half the bytes, the same FLOPs: which way does a point move?",
        frozenset(
            {"64 rows, 16 bits", "64 rows, one thread of eight"}
        ): "the same work has the same FLOPs for each byte; how fast it is done is another question",
        frozenset(
            {"64 rows, 16 bits", "prompt of 272 tokens"}
        ): "a fetched weight is used once for each token that goes through it",
        frozenset({"one row, 16 bits", "64 rows, 16 bits"}): "what is on the x axis?",
    },
    title="read a roofline",
    points=2,
    minutes=8,
    level="easy",
    importance="core",
    see='chapter 16, "Two numbers of your machine"; the hints of this task',
    reward=show_points,
)

TASKS = [FLOPS, BYTES, ROOF, STOPWATCH, ROWS, LAYER, ROOFLINE]
