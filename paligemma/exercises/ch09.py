"""Chapter 09: the decoder."""

import torch
from torch import nn
from torch.nn import functional as F

from .. import swap as swap_module
from ..generation import generate
from ..kv_cache import KVCache
from ..modeling_gemma import (
    GemmaConfig,
    GemmaDecoderLayer,
    GemmaMLP,
    GemmaRotaryEmbedding,
    additive_mask,
    make_attn_mask,
)
from .checking import explain_error, with_weights
from .tasks import Case, Finding, Mistake, Task, faults_left, larger, numbers
from .watching import PROMPT, picture, swap_task, trained

# --- 09.1 --------------------------------------------------------------------------------------------------------


def config_of(D, inner, eps=1e-6):
    return GemmaConfig(
        hidden_size=D, intermediate_size=inner, num_attention_heads=4, num_key_value_heads=2, head_dim=6,
        num_hidden_layers=2, rms_norm_eps=eps, attention="eager",
    )  # fmt: skip


def mlp_cases(seed):
    k = larger(seed)
    yield Case(
        (numbers(seed, 2, 5, 6 + k, scale=3.0),),
        (config_of(6 + k, 10 + 2 * k),),
        {"B": 2, "L": 5, "D": 6 + k, "inner": 10 + 2 * k},
    )
    yield Case((numbers(seed, 3, 4, 9, shift=2.0),), (config_of(9, 7),), {"B": 3, "L": 4, "D": 9, "inner": 7},
               note="about 2 on average, and an inner width below D")  # fmt: skip


def tanh_gelu(x):
    return F.gelu(x, approximate="tanh")


def mlp(inside):
    """The reference with another inside: a function of the gate's and the up matrix's outputs."""

    class Variant(GemmaMLP):
        def forward(self, x):
            return self.down_proj(inside(self.gate_proj(x), self.up_proj(x)))

    return Variant


class GeluAtTheEnd(GemmaMLP):
    def forward(self, x):
        return tanh_gelu(self.down_proj(self.gate_proj(x) * self.up_proj(x)))


class OneAfterTheOther(GemmaMLP):
    """An error, since `up_proj` reads tokens of width D."""

    def forward(self, x):
        return self.down_proj(self.up_proj(tanh_gelu(self.gate_proj(x))))


def show_mlp(kind):
    full = GemmaConfig()
    with torch.device("meta"):  # counts, without allocating
        count = sum(parameter.numel() for parameter in kind(full).parameters())
    print(f"  In the 3B model yours has {count:,} weights in each of 18 layers, {18 * count:,} in all.")


MLP = Task(
    id="09.1",
    title="GemmaMLP",
    points=2,
    minutes=8,
    level="easy",
    reference=GemmaMLP,
    cases=mlp_cases,
    tolerance=3e-6,
    see='chapter 09, "By hand" and "GemmaMLP"; the hints of this task',
    reward=show_mlp,
    mistakes=[
        Mistake(
            "GELU on the wrong branch",
            "your numbers are those you get with GELU on the output of `up_proj`. The two matrices have the same "
            "shape, and trained weights know which is which",
            mlp(lambda gate, up: gate * tanh_gelu(up)),
        ),
        Mistake(
            "exact GELU",
            "your numbers are those of the exact GELU; Gemma was trained with the approximation by tanh. They differ "
            "by less than a thousandth: too little to see, too much to be equal",
            mlp(lambda gate, up: F.gelu(gate) * up),
        ),
        Mistake("exact GELU", "your GELU is the exact one, and it is on the wrong branch",
                mlp(lambda gate, up: gate * F.gelu(up))),
        Mistake("GELU on both branches", "both outputs go through GELU",
                mlp(lambda gate, up: tanh_gelu(gate) * tanh_gelu(up))),
        Mistake("GELU after the product", "GELU comes after the multiplication: it belongs on one of the two factors",
                mlp(lambda gate, up: tanh_gelu(gate * up))),
        Mistake("GELU at the end", "GELU comes after `down_proj`", GeluAtTheEnd),
        Mistake("GELU forgotten", "nothing bends: gate and values are multiplied as they are",
                mlp(lambda gate, up: gate * up)),
        Mistake("SiLU instead of GELU", "your numbers are those of SiLU, which Llama takes at this place",
                mlp(lambda gate, up: F.silu(gate) * up)),
        Mistake("ReLU instead of GELU", "negative gates are cut off sharply: that is ReLU",
                mlp(lambda gate, up: F.relu(gate) * up)),
        Mistake("sigmoid instead of GELU", "your gate is a sigmoid, between 0 and 1: the first gated units had it so",
                mlp(lambda gate, up: torch.sigmoid(gate) * up)),
        Mistake("no gate", "your numbers are those of a plain MLP: `gate_proj` has no effect",
                mlp(lambda gate, up: tanh_gelu(up))),
        Mistake("no gate", "your numbers are those of a plain MLP: `up_proj` has no effect",
                mlp(lambda gate, up: tanh_gelu(gate))),
        Mistake("added instead of multiplied", "gate and values are added: a gate multiplies",
                mlp(lambda gate, up: tanh_gelu(gate) + up)),
        Mistake("one after the other", "the two matrices are applied one after the other: both read the same token",
                OneAfterTheOther),
    ],
)  # fmt: skip

# --- 09.2 --------------------------------------------------------------------------------------------------------


def layer_cases(seed):
    k = larger(seed)
    sizes = {"B": 3, "L": 5, "D": 14, "inner": 20}
    real = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    x = numbers(seed, 3, 5, 14, scale=2.0)
    rope = GemmaRotaryEmbedding(6)(x, real.cumsum(-1).clamp(min=1))
    mask = additive_mask(make_attn_mask(real, torch.tensor([[0, 0, 0, 1, 1]] * 3)), x.dtype)
    yield Case((x, rope, mask), (config_of(14, 20), 0), sizes, note="prefix-LM, padded")
    x = numbers(seed, 2, 7 + k, 8 + k, shift=3.0)
    rope = GemmaRotaryEmbedding(6)(x, torch.arange(1, 8 + k).expand(2, 7 + k))
    sizes = {"B": 2, "L": 7 + k, "D": 8 + k, "inner": 9}
    yield Case(
        (x, rope), (config_of(8 + k, 9, eps=0.01), 0), sizes, note="about 3 on average, no mask, rms_norm_eps = 0.01"
    )


def layer(first, second=lambda s, h: h + s.mlp(s.post_attention_layernorm(h))):
    """The reference with another first or second half.

    `first(s, x, attend)` and `second(s, h)`: s is the layer, attend(x) its attention.
    """

    class Variant(GemmaDecoderLayer):
        def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
            def attend(x):
                return self.self_attn(x, position_embeddings, attention_mask, kv_cache)[0]

            return second(self, first(self, hidden_states, attend))

    return Variant


def usual(s, x, attend):
    return x + attend(s.input_layernorm(x))


def in_parallel(s, x, attend):
    return x + attend(s.input_layernorm(x)) + s.mlp(s.post_attention_layernorm(x))


def attention_lost(s, x, attend):
    return x + s.mlp(s.post_attention_layernorm(usual(s, x, attend)))


def normalised_residual(s, x, attend):
    normed = s.input_layernorm(x)
    return normed + attend(normed)


def normalised_second(s, h):
    normed = s.post_attention_layernorm(h)
    return normed + s.mlp(normed)


def as_it_is(s, h):
    return h


class MaskForgotten(GemmaDecoderLayer):
    def forward(self, hidden_states, position_embeddings, attention_mask=None, kv_cache=None):
        return super().forward(hidden_states, position_embeddings, None, kv_cache)


class EpsFixed(GemmaDecoderLayer):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.input_layernorm.eps = self.post_attention_layernorm.eps = 1e-6


def passes_the_cache_on(kind) -> Finding | None:
    """Fed in two pieces with a cache, the tokens must come out as they do all at once."""
    config, where = config_of(14, 20), "layer 1 of 2, fed 3 tokens and then 2, with a cache: "
    mine = kind(config, 1)
    swap_module.take_over(mine, with_weights(GemmaDecoderLayer(config, 1)))
    x, ones = numbers(78, 2, 5, 14), torch.ones(2, 5, dtype=torch.int64)
    mask = additive_mask(make_attn_mask(ones, ones), x.dtype)
    cos, sin = GemmaRotaryEmbedding(6)(x, ones.cumsum(-1))
    cache, pieces = KVCache(config, 2, 9), []
    try:
        with torch.no_grad():
            whole = mine(x, (cos, sin), mask)
            for start, end in ((0, 3), (3, 5)):
                rope = cos[:, start:end], sin[:, start:end]
                pieces.append(mine(x[:, start:end], rope, mask[:, :, start:end, :end], cache))
                if cache.keys[0].any():
                    means = "the number of the layer goes on to the attention: each has a place of its own in the cache"
                    return Finding("layer_idx not passed on", f"{where}layer 0 of the cache was written", means)
                if not cache.keys[1].any():
                    means = "the layer gets a cache and its attention does not: it is the fourth argument of both"
                    return Finding("cache not passed on", f"{where}nothing was written into the cache", means)
                cache.advance(end - start)
    except Exception as error:
        finding = explain_error(error)
        return Finding(finding.name, where + finding.observed, finding.explanation)
    gap = float((torch.cat(pieces, 1) - whole).abs().max())
    if gap < 1e-4:
        return None
    return Finding("cached differs", f"{where}outputs differ from those without a cache by {gap:.2g}", "")


def show_layer(kind):
    config = config_of(14, 20)
    mine = kind(config, 0)
    swap_module.take_over(mine, with_weights(GemmaDecoderLayer(config, 0)))
    x = numbers(3, 1, 4, 14)
    rope = GemmaRotaryEmbedding(6)(x, torch.arange(1, 5)[None])
    with torch.no_grad():
        for what, weights in (
            ("as it is:", []),
            ("MLP silenced:", [mine.mlp.down_proj.weight]),
            ("attention silenced too:", [mine.mlp.down_proj.weight, mine.self_attn.o_proj.weight]),
        ):
            for weight in weights:
                weight.zero_()
            print(f"  {what:24} the layer changes x by up to {(mine(x, rope) - x).abs().max():.2f}")


LAYER = Task(
    id="09.2",
    title="GemmaDecoderLayer",
    points=4,
    minutes=15,
    level="medium",
    reference=GemmaDecoderLayer,
    cases=layer_cases,
    tolerance=2e-5,
    see='chapter 09, "GemmaDecoderLayer"; the hints of this task',
    reward=show_layer,
    extra=[passes_the_cache_on],
    mistakes=[
        Mistake(
            "residual from the normalised input",
            "attention's output is added to the normalised input and not to what came in: the stream forgets how large "
            "it was. With attention and MLP silenced, your layer is a norm and not the identity",
            layer(normalised_residual),
        ),
        Mistake(
            "residual from the normalised input",
            "the MLP's output is added to its normalised input, and not to what came out of the attention's half",
            layer(usual, normalised_second),
        ),
        Mistake(
            "residual from the normalised input",
            "both sums add to the normalised input and not to the stream: with attention and MLP silenced, your layer "
            "is two norms and not the identity",
            layer(normalised_residual, normalised_second),
        ),
        Mistake(
            "norm after instead of before",
            "both norms are on the outputs of attention and MLP: they belong on the inputs",
            layer(lambda s, x, attend: x + s.input_layernorm(attend(x)),
                  lambda s, h: h + s.post_attention_layernorm(s.mlp(h))),
        ),
        Mistake(
            "norm after instead of before", "the norm of the MLP is on its output: it belongs on its input",
            layer(usual, lambda s, h: h + s.post_attention_layernorm(s.mlp(h))),
        ),
        Mistake(
            "norm after instead of before", "the norm of the attention is on its output: it belongs on its input",
            layer(lambda s, x, attend: x + s.input_layernorm(attend(x))),
        ),
        Mistake(
            "norm after the sum",
            "the norms come after the sums, as in the first transformers: then nothing runs through untouched",
            layer(lambda s, x, attend: s.input_layernorm(x + attend(x)),
                  lambda s, h: s.post_attention_layernorm(h + s.mlp(h))),
        ),
        Mistake(
            "norms of Gemma 2",
            "`post_attention_layernorm` is on the attention's output: Gemma 2 has a norm of that name there. In Gemma "
            "1 it stands before the MLP",
            layer(lambda s, x, attend: x + s.post_attention_layernorm(attend(s.input_layernorm(x))),
                  lambda s, h: h + s.mlp(h)),
        ),
        Mistake("norm forgotten", "neither attention nor MLP gets a normalised input",
                layer(lambda s, x, attend: x + attend(x), lambda s, h: h + s.mlp(h))),
        Mistake("norm forgotten", "the attention reads the stream as it is, without a norm",
                layer(lambda s, x, attend: x + attend(x))),
        Mistake("norm forgotten", "the MLP reads the stream as it is, without a norm",
                layer(usual, lambda s, h: h + s.mlp(h))),
        Mistake("norms swapped", "each norm does the other's work: `input_layernorm` comes first",
                layer(lambda s, x, attend: x + attend(s.post_attention_layernorm(x)),
                      lambda s, h: h + s.mlp(s.input_layernorm(h)))),
        Mistake("one norm twice", "`input_layernorm` is used before the MLP as well: it has a norm of its own",
                layer(usual, lambda s, h: h + s.mlp(s.input_layernorm(h)))),
        Mistake("residual forgotten", "neither output is added to what came in",
                layer(lambda s, x, attend: attend(s.input_layernorm(x)),
                      lambda s, h: s.mlp(s.post_attention_layernorm(h)))),
        Mistake("residual forgotten", "the attention's output replaces what came in: it is to be added",
                layer(lambda s, x, attend: attend(s.input_layernorm(x)))),
        Mistake("residual forgotten", "the MLP's output replaces what came in: it is to be added",
                layer(usual, lambda s, h: s.mlp(s.post_attention_layernorm(h)))),
        Mistake("in parallel", "the MLP reads what came into the layer, not what the attention made of it",
                layer(in_parallel, as_it_is)),
        Mistake("attention lost", "the MLP's output is added to what came into the layer: the attention's is lost",
                layer(attention_lost, as_it_is)),
        Mistake("MLP first", "the MLP comes before the attention",
                layer(lambda s, x, attend: (lambda h: h + attend(s.input_layernorm(h)))(
                    x + s.mlp(s.post_attention_layernorm(x))), as_it_is)),
        Mistake("mask forgotten", "the mask does not reach the attention", MaskForgotten),
        Mistake("eps not passed on", "the norms have their usual eps, and not the configuration's", EpsFixed),
    ],
)  # fmt: skip

# --- 09.3 --------------------------------------------------------------------------------------------------------


def pieces(seed, D, zeros=False):
    """attend, think, norm_1, norm_2: small functions in place of the parts of a layer, [B, L, D] -> [B, L, D]."""
    mixer, first, second = numbers(seed + 1, D, D), numbers(seed + 2, D, 2 * D), numbers(seed + 3, 2 * D, D)
    gains = numbers(seed + 4, D, scale=0.3, shift=1.0), numbers(seed + 5, D, scale=0.3, shift=1.0)

    def attend(x):
        weights = (x @ x.transpose(-1, -2) / D).softmax(-1)
        return torch.zeros_like(x) if zeros else weights @ x @ mixer

    def think(x):
        return torch.zeros_like(x) if zeros else tanh_gelu(x @ first) @ second / D

    def norm_1(x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gains[0]

    def norm_2(x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gains[1]

    return attend, think, norm_1, norm_2


FAULTS = {  # what can be observed of each, and its name
    "residual": (
        "the attention's output is added to the normalised input: with attention and MLP "
        "silenced, the layer is not the identity",
        "residual from the normalised input",
    ),
    "raw": (
        "the attention reads the stream as it is: a larger input gives sharper weights",
        "attention without a norm",
    ),
    "after": (
        "the MLP reads the stream as it is, and its output is normalised instead",
        "norm after instead of before",
    ),
}


def block(x, attend, think, norm_1, norm_2, faults=()):
    normed = norm_1(x)
    h = (normed if "residual" in faults else x) + attend(x if "raw" in faults else normed)
    return h + (norm_2(think(h)) if "after" in faults else think(norm_2(h)))


def block_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "L": 5 + k, "D": 6}
    yield Case((numbers(seed, 2, 5 + k, 6, scale=2.0), *pieces(seed, 6)), sizes=sizes)
    yield Case((numbers(seed, 2, 5 + k, 6, scale=30.0), *pieces(seed + 9, 6)), sizes=sizes, note="about 30 in size")
    silent = pieces(seed, 6, zeros=True)
    yield Case((numbers(seed, 2, 5 + k, 6), *silent), sizes=sizes, note="attention and MLP return zeros")


def show_block(thing):
    x = numbers(0, 1, 3, 6)
    silent = (thing(x, *pieces(0, 6, zeros=True)) - x).abs().max()
    print(f"  attention and MLP return zeros: the layer changes x by {silent:.2f}")
    for size in (1, 10, 100):
        change = (thing(size * x, *pieces(0, 6)) - size * x).square().mean().sqrt()
        print(f"  x about {size:3} in size: the layer adds about {change:.1f}")


BLOCK = Task(
    id="09.3",
    title="find the wrong residual",
    points=3,
    minutes=10,
    level="medium",
    reference=block,
    cases=block_cases,
    tolerance=2e-5,
    see='chapter 09, "GemmaDecoderLayer"; the hints of this task: which input would show each fault?',
    reward=show_block,
    mistakes=[
        *faults_left(FAULTS, lambda some: lambda *inputs: block(*inputs, faults=some)),
        Mistake(
            "residual from the normalised input", "the MLP's output is added to its normalised input",
            lambda x, attend, think, norm_1, norm_2: (lambda n: n + think(n))(norm_2(x + attend(norm_1(x)))),
        ),
        Mistake(
            "residual from the normalised input", "both sums add to the normalised input, and not to the stream",
            lambda x, attend, think, norm_1, norm_2: (lambda n: n + think(n))(
                (lambda n: norm_2(n + attend(n)))(norm_1(x))),
        ),
        Mistake(
            "norm after instead of before", "both norms are on the outputs now",
            lambda x, attend, think, norm_1, norm_2: (lambda h: h + norm_2(think(h)))(x + norm_1(attend(x))),
        ),
        Mistake(
            "norm after the sum", "the norms come after the sums, as in the first transformers",
            lambda x, attend, think, norm_1, norm_2: (lambda h: norm_2(h + think(h)))(norm_1(x + attend(x))),
        ),
        Mistake(
            "norm forgotten", "the MLP reads the stream as it is, without a norm",
            lambda x, attend, think, norm_1, norm_2: (lambda h: h + think(h))(x + attend(norm_1(x))),
        ),
        Mistake(
            "normalised twice", "the MLP's input is normalised and its output as well",
            lambda x, attend, think, norm_1, norm_2: (lambda h: h + norm_2(think(norm_2(h))))(x + attend(norm_1(x))),
        ),
        Mistake(
            "attention lost", "the MLP's output is added to what came into the layer: what the attention added is lost",
            lambda x, attend, think, norm_1, norm_2: x + think(norm_2(x + attend(norm_1(x)))),
        ),
        Mistake(
            "in parallel", "the MLP reads what came into the layer, not what the attention made of it",
            lambda x, attend, think, norm_1, norm_2: x + attend(norm_1(x)) + think(norm_2(x)),
        ),
        Mistake(
            "one norm twice", "`norm_1` is used before the MLP as well",
            lambda x, attend, think, norm_1, norm_2: (lambda h: h + think(norm_1(h)))(x + attend(norm_1(x))),
        ),
        Mistake(
            "residual forgotten", "the outputs are not added to what came in",
            lambda x, attend, think, norm_1, norm_2: think(norm_2(attend(norm_1(x)))),
        ),
    ],
)  # fmt: skip

# --- 09.4 --------------------------------------------------------------------------------------------------------


class WordTable(nn.Module):
    """One table for both ends, by matrix products with one-hot rows: another way than the learner's."""

    def __init__(self, vocab_size, hidden_size):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)

    def embed(self, input_ids):
        V, D = self.embed_tokens.weight.shape
        return F.one_hot(input_ids, V).float() @ self.embed_tokens.weight * self.factor(V, D)

    def factor(self, V, D):
        return D**0.5

    def lm_head(self, hidden_states):
        return hidden_states @ self.embed_tokens.weight.T


def both_ends(kind, table, input_ids, states):
    """What a table of words makes of ids and of states, how the table learns from both, and what there is to learn."""
    words = kind(*table.shape)
    with torch.no_grad():
        words.embed_tokens.weight.copy_(table)
    with torch.enable_grad():
        embeddings, logits = words.embed(input_ids), words.lm_head(states)
        ends = [end for end in (embeddings, logits) if isinstance(end, torch.Tensor) and end.requires_grad]
        total = sum((end * numbers(i, *end.shape)).sum() for i, end in enumerate(ends))
        gradient = torch.autograd.grad(total, words.embed_tokens.weight)[0] if ends else torch.zeros_like(table)
    return {
        "embeddings": embeddings.detach() if isinstance(embeddings, torch.Tensor) else embeddings,
        "logits": logits.detach() if isinstance(logits, torch.Tensor) else logits,
        "gradient of the table": gradient,
        "numbers to learn": sum(parameter.numel() for parameter in words.parameters()),
    }


def table_cases(seed):
    k = larger(seed)
    sizes = {"V": 11, "D": 6, "B": 2, "L": 5}
    ids = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(seed))
    yield Case((numbers(seed, 11, 6), ids, numbers(seed + 20, 2, 5, 6)), sizes=sizes)
    sizes = {"V": 5, "D": 9 + k, "B": 3, "L": 4 + k}
    ids = torch.randint(0, 5, (3, 4 + k), generator=torch.Generator().manual_seed(seed))
    yield Case(
        (numbers(seed, 5, 9 + k), ids, numbers(seed + 30, 3, 4 + k, 9 + k)),
        sizes=sizes,
        note="fewer words than features",
    )


def scaled(factor):
    return type("Scaled", (WordTable,), {"factor": lambda self, V, D: factor(V, D)})


def headed(head):
    return type("Headed", (WordTable,), {"lm_head": lambda self, states: head(self.embed_tokens.weight, states)})


class OwnHead(WordTable):
    def __init__(self, vocab_size, hidden_size):
        super().__init__(vocab_size, hidden_size)
        self.head = nn.Linear(hidden_size, vocab_size, bias=False)

    def lm_head(self, hidden_states):
        return self.head(hidden_states)


class OwnHeadUnscaled(OwnHead):
    def factor(self, V, D):
        return 1.0


class CopiedHead(WordTable):
    def __init__(self, vocab_size, hidden_size):
        super().__init__(vocab_size, hidden_size)
        self.head = self.embed_tokens.weight.detach().clone()

    def lm_head(self, hidden_states):
        return F.linear(hidden_states, self.head)


def is_tied(case, got, want) -> Finding | None:
    if got["numbers to learn"] > want["numbers to learn"]:
        return Finding(
            "head not tied",
            f"your class has {got['numbers to learn']} numbers to learn, expected {want['numbers to learn']}",
            "the head has weights of its own: it is to be the embedding table once more",
        )
    return None


def show_table(kind):
    with torch.device("meta"):  # counts, without allocating
        count = sum(parameter.numel() for parameter in kind(257216, 2048).parameters())
    print(f"  In the 3B model yours has {count:,} weights for both ends; with two tables it would be {2 * count:,}.")


TABLE = Task(
    id="09.4",
    title="tie a head",
    points=2,
    minutes=10,
    level="easy",
    reference=WordTable,
    cases=table_cases,
    use=both_ends,
    gradients=False,
    see='chapter 09, "GemmaForCausalLM and the head that isn\'t there"; the hints of this task',
    reward=show_table,
    symptoms=[is_tied],
    mistakes=[
        Mistake("scale forgotten", "the embeddings are the rows of the table as they are: they would be tiny beside "
                "what the layers add", scaled(lambda V, D: 1.0)),
        Mistake("scale doubled", "the embeddings are multiplied by D: the square root is missing, or the factor is "
                "there twice", scaled(lambda V, D: D)),
        Mistake("divided instead of multiplied", "the embeddings are divided by the square root of D",
                scaled(lambda V, D: D**-0.5)),
        Mistake("scale of the vocabulary", "the factor is the square root of V and not of D",
                scaled(lambda V, D: V**0.5)),
        Mistake("head scaled too", "the logits are multiplied by the square root of D: the head uses the table alone",
                headed(lambda table, states: states @ table.T * table.shape[1] ** 0.5)),
        Mistake("head divided", "the logits are divided by the square root of D: the head uses the table as it is",
                headed(lambda table, states: states @ table.T * table.shape[1] ** -0.5)),
        Mistake("head not tied", "the logits have nothing to do with the table: the head has weights of its own",
                OwnHead),
        Mistake("head not tied", "the head has weights of its own, and the embeddings are not scaled", OwnHeadUnscaled),
        Mistake("head not tied", "the head keeps a copy of the table, from the time when the object was made: trained "
                "weights that are loaded later never reach it", CopiedHead),
        Mistake("cut off from the table", "the logits are right, and no gradient flows from them into the table: "
                ".detach(), .data or no_grad on the way", headed(lambda table, states: states @ table.detach().T)),
        Mistake("softmax in the head", "probabilities come out of the head; logits are the numbers before the softmax",
                headed(lambda table, states: (states @ table.T).softmax(-1))),
    ],
)  # fmt: skip

# --- 09.5 --------------------------------------------------------------------------------------------------------


def logit_lens(states, norm, table):
    """Layer by layer."""
    tokens, probabilities = [], []
    for state in states:
        p = (norm(state) @ table.T).softmax(dim=-1)
        tokens.append(p.argmax(dim=-1))
        probabilities.append(p.amax(dim=-1))
    return torch.stack(tokens), torch.stack(probabilities)


def gain(seed, D):
    """A norm as at the end of a decoder, with a scale of its own for each feature."""
    weight = numbers(seed + 70, D, scale=0.5, shift=1.0)
    return lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def lens_cases(seed):
    k = larger(seed)

    def case(layers, B, L, D, V, note=""):
        states = [numbers(seed + 3 * i, B, L, D, scale=1.0 + i) for i in range(layers + 1)]
        sizes = {"layers + 1": layers + 1, "B": B, "L": L, "D": D, "V": V}
        return Case((states, gain(seed, D), numbers(seed + 40, V, D, scale=0.7)), sizes=sizes, note=note)

    yield case(3 + k, 2, 5, 6 + k, 9 + k)
    yield case(2, 1, 7, 8, 4, "fewer words than features")


def lens(read=lambda state, norm: norm(state), axis=-1, states=list, best=lambda logits, p: p.max(dim=-1)):
    """The reference with one thing done differently."""

    def function(all_states, norm, table):
        logits = torch.stack([read(state, norm) for state in states(all_states)]) @ table.T
        values, tokens = best(logits, logits.softmax(dim=axis))
        return tokens, values

    return function


def lowest(logits, p):
    return p.min(dim=-1)


def show_lens(thing):
    """The trained model's caption, read at each layer."""
    from ..visualize import show_logit_lens  # here: matplotlib is not needed for anything else

    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so there is nothing to read.")
        return
    (model, processor), image = trained(), picture(1)
    decoder, tokenizer = model.language_model, processor.tokenizer
    written = generate(model, processor, images=[image], text=[PROMPT])[0]
    inputs = processor(text=[PROMPT], images=[image], suffix=[written])
    start = int(inputs["token_type_ids"][0].argmax()) - 1  # the position that chooses the first word
    states = []  # the residual stream: before layer 0, and after each layer
    hooks = [decoder.model.layers[0].register_forward_pre_hook(lambda module, args: states.append(args[0]))]
    hooks += [part.register_forward_hook(lambda module, args, out: states.append(out)) for part in decoder.model.layers]
    with torch.no_grad():
        model(**inputs)
        for hook in hooks:
            hook.remove()
        tokens, probabilities = thing(states, decoder.model.norm, decoder.model.embed_tokens.weight)
    tokens, probabilities = tokens[:, 0, start:-1], probabilities[:, 0, start:-1]  # [layers + 1, A]
    words = [tokenizer.convert_ids_to_tokens(row.tolist()) for row in tokens]
    standing = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0, start:-1].tolist())
    names = ["embedding", *(f"layer {i}" for i in range(len(decoder.model.layers)))]
    print(f"  written: {written}")
    for name, row in zip(names, tokens):
        print(f"  {name:10} names {int((row == tokens[-1]).sum()):2} of the {len(row)} words that are written")
    axes = show_logit_lens(words, probabilities, standing, names)
    axes.figure.set_size_inches(9.5, 3.6)  # wide enough for long words side by side


LENS = Task(
    id="09.5",
    title="the logit lens",
    points=3,
    minutes=12,
    level="medium",
    reference=logit_lens,
    cases=lens_cases,
    see='chapter 09, "The logit lens"; the hints of this task',
    reward=show_lens,
    mistakes=[
        Mistake(
            "norm forgotten",
            "the head reads the states as they are: it was trained on normalised ones, and the stream grows from layer "
            "to layer",
            lens(lambda state, norm: state),
        ),
        Mistake("norm twice", "the states are normalised twice", lens(lambda state, norm: norm(norm(state)))),
        Mistake("softmax over the wrong axis", "the softmax runs over the positions", lens(axis=-2)),
        Mistake("softmax over the wrong axis", "the softmax runs over the layers", lens(axis=0)),
        Mistake(
            "logits instead of probabilities", "the second result is the largest logit: the softmax is missing",
            lens(best=lambda logits, p: logits.max(dim=-1)),
        ),
        Mistake("embedding left out", "the first state is missing: before layer 0 there is something to read, too",
                lens(states=lambda states: states[1:])),
        Mistake("last layer left out", "the last state is missing", lens(states=lambda states: states[:-1])),
        Mistake("last layer only", "every row is the last layer's", lens(states=lambda s: [s[-1]] * len(s))),
        Mistake(
            "states added up", "the states are added up on the way: each holds all that came before it already",
            lens(states=lambda states: list(torch.stack(states).cumsum(0))),
        ),
        Mistake(
            "what each layer adds", "what each layer adds is read, and not the stream after it",
            lens(states=lambda s: [s[0], *(b - a for a, b in zip(s, s[1:]))]),
        ),
        Mistake("least likely", "the least likely word is named", lens(best=lowest)),
        Mistake("order of the results", "the probabilities come first", lambda *inputs: logit_lens(*inputs)[::-1]),
    ],
)  # fmt: skip

TASKS = [
    MLP,
    LAYER,
    BLOCK,
    TABLE,
    LENS,
    swap_task("09.6", ("GemmaMLP", "GemmaDecoderLayer"), see='chapter 09, "Break it"; the hints of this task'),
]
