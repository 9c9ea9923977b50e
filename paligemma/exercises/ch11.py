"""Chapter 11: choosing tokens, the cache, and the loop that writes."""

import ast
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from .. import swap as swap_module
from ..generation import generate
from ..kv_cache import KVCache
from .exposing import exposing_task
from .tasks import Case, Finding, Found, Mistake, Prediction, Task, larger, numbers
from .watching import PROMPT, picture, trained

# --- 11.1 --------------------------------------------------------------------------------------------------------


def probabilities(logits, temperature):
    return (logits.double() / temperature).softmax(dim=-1).to(logits.dtype)


def temperature_cases(seed):
    k = larger(seed)
    sizes = {"B": 2, "V": 7}
    yield Case((numbers(seed, 2, 7), 1.0), sizes=sizes, note="temperature 1")
    yield Case((numbers(seed, 2, 7, scale=2.0), 0.5), sizes=sizes, note="temperature 0.5")
    yield Case((numbers(seed, 3 + k, 5 + k), 2.5), sizes={"B": 3 + k, "V": 5 + k}, note="temperature 2.5")
    yield Case(
        (numbers(seed, 2, 7, scale=30, shift=500.0), 0.7), sizes=sizes, note="logits of about 500", tolerance=1e-4
    )
    far = torch.tensor([[300.0], [-300.0]]) + numbers(seed, 2, 7)
    yield Case((far, 1.0), sizes=sizes, note="one row about 300, the other about -300", tolerance=1e-4)
    yield Case((numbers(seed, 2, 7, scale=150.0), 40.0), sizes=sizes, note="temperature 40, logits of some hundreds")


def show_temperature(thing):
    logits = torch.tensor([[2.0, 1.0, 0.5, -0.5]])
    for temperature in (0.5, 1.0, 2.0):
        row = "  ".join(f"{p:.2f}" for p in thing(logits, temperature)[0].tolist())
        print(f"  temperature {temperature}:  {row}")


TEMPERATURE = Task(
    id="11.1",
    title="temperature",
    points=1,
    minutes=4,
    level="easy",
    importance="core",
    reference=probabilities,
    cases=temperature_cases,
    gradients=False,
    see='chapter 11, "By hand"; the hints of this task',
    reward=show_temperature,
    mistakes=[
        Mistake("multiplied", "the logits are multiplied by the temperature: a high one sharpens so, and is to flatten",
                lambda x, t: (x * t).softmax(-1)),
        Mistake("temperature unused", "your numbers are those of temperature 1, whatever is given",
                lambda x, t: x.softmax(-1)),
        Mistake("after the softmax", "the probabilities are divided by the temperature: they no longer sum to 1",
                lambda x, t: x.softmax(-1) / t),
        Mistake("softmax over the wrong axis", "the softmax runs over the rows of the batch: the columns sum to 1",
                lambda x, t: (x / t).softmax(0)),
        Mistake("overflow", "exponentials of large logits are infinite: a softmax subtracts the largest first, and "
                "torch's does", lambda x, t: (x / t).exp() / (x / t).exp().sum(-1, keepdim=True)),
        Mistake("one largest for all rows", "the largest logit of the batch is subtracted: in a row that lies far "
                "below it all exponentials are 0, and 0 / 0 is NaN",
                lambda x, t: ((x - x.max()) / t).exp() / ((x - x.max()) / t).exp().sum(-1, keepdim=True)),
        Mistake("power of the softmax", "the probabilities are raised to the power of 1 / temperature: on paper that "
                "is the same, but what the softmax has rounded to 0 stays 0",
                lambda x, t: x.softmax(-1) ** (1 / t) / (x.softmax(-1) ** (1 / t)).sum(-1, keepdim=True)),
        Mistake("no softmax", "these are logits: they are not between 0 and 1", lambda x, t: x / t),
        Mistake("log", "these are logarithms of probabilities", lambda x, t: (x / t).log_softmax(-1)),
        Mistake("subtracted", "the temperature is subtracted, which a softmax does not notice",
                lambda x, t: (x - t).softmax(-1)),
        Mistake("not divided by the sum", "the probabilities are raised to the power of 1 / temperature: they no "
                "longer "
                "sum to 1", lambda x, t: x.softmax(-1) ** (1 / t)),
        Mistake("sum of the whole batch", "the exponentials are divided by the sum over the whole batch: each row is "
                "to "
                "sum to 1", lambda x, t: ((x - x.amax(-1, keepdim=True)) / t).exp() / (
                    (x - x.amax(-1, keepdim=True)) / t).exp().sum()),
    ],
)  # fmt: skip

# --- 11.2 --------------------------------------------------------------------------------------------------------


def keep_nucleus(p, top_p):
    """The plain rule, token by token."""
    kept = torch.zeros_like(p)
    for row, out in zip(p, kept, strict=True):
        total = 0.0
        for token in row.argsort(descending=True).tolist():
            if total >= top_p:
                break
            out[token] = row[token]
            total += float(row[token])
    return kept / kept.sum(dim=-1, keepdim=True)


def nucleus_cases(seed):
    k = larger(seed)
    # No probabilities that are alike, and no sums near the limit: rounding must not decide.
    generator = torch.Generator().manual_seed(90 + seed)
    for B, V, top_p in ((2, 5, 0.7), (3 + k, 7 + k, 0.35), (2, 6, 0.93), (2, 4, 1.0)):
        rows = []
        while len(rows) < B:
            p = torch.randn(V, generator=generator).mul(1.5).softmax(0)
            sums = p.sort(descending=True).values.cumsum(0)
            if (sums[:-1] - top_p).abs().min() > 0.02 and p.sort().values.diff().min() > 1e-3:
                rows.append(p)
        yield Case((torch.stack(rows), top_p), sizes={"B": B, "V": V}, note=f"top_p = {top_p}")
    yield Case((torch.tensor([[0.1, 0.85, 0.05], [0.3, 0.2, 0.5]]), 0.4), note="the likeliest alone exceeds top_p")
    p = torch.tensor([[0.125, 0.5, 0.25, 0.0625, 0.0625], [0.5, 0.0625, 0.0625, 0.125, 0.25]])  # sums without rounding
    yield Case((p, 0.5 if seed % 2 else 0.75), note="the likeliest sum to top_p exactly")


def by_its_sum(kept, top_p):
    return kept / kept.sum(dim=-1, keepdim=True)


def nucleus(rule, unsort=True, divide=by_its_sum):
    """The usual way by sorting, with another rule, another division or without a step."""

    def function(p, top_p):
        values, order = p.sort(dim=-1, descending=True)
        values = values.masked_fill(rule(values, values.cumsum(-1), top_p), 0.0)
        kept = torch.zeros_like(p).scatter(1, order, values) if unsort else values
        return divide(kept, top_p) if divide else kept

    return function


def gathered_back(p, top_p):
    values, order = p.sort(dim=-1, descending=True)
    values = values.masked_fill(right_rule(values, values.cumsum(-1), top_p), 0.0)
    return values.gather(1, order) / values.sum(-1, keepdim=True)


def right_rule(values, sums, top_p):
    return sums - values >= top_p


def at_least_one(values, sums, top_p):
    drop = sums > top_p
    drop[:, 0] = False
    return drop


def keeps_few_of_the_ties(thing) -> Finding | None:
    """Where tokens are equally likely, any of them may be kept, and no more than are needed."""
    p = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.125, 0.375, 0.125, 0.375]])  # sums without rounding
    for top_p, kept in ((0.5, (2, 2)), (0.75, (3, 2))):
        got = tuple((thing(p.clone(), top_p) > 0).sum(dim=-1).tolist())
        for row, mine, needed in zip(p.tolist(), got, kept, strict=True):
            if mine != needed:
                return Finding(
                    "ties kept together",
                    f"of {row} with top_p = {top_p} your code keeps {mine} tokens, expected {needed}",
                    "equally likely tokens are kept or dropped together, by their probability: they stand one after "
                    "the other in the order of the sort, so decide by the place in that order",
                )
    return None


def show_nucleus(thing):
    p = torch.tensor([[0.55, 0.25, 0.12, 0.05, 0.03]])
    for top_p in (0.5, 0.75, 0.9, 1.0):
        row = "  ".join(f"{x:.2f}" for x in thing(p, top_p)[0].tolist())
        print(f"  top_p {top_p:<4}  {row}")


NUCLEUS = Task(
    id="11.2",
    title="top-p",
    points=3,
    minutes=15,
    level="medium",
    importance="core",
    prediction=Prediction(
        "Of the row [0.4, 0.2, 0.2, 0.2] with top_p = 0.5, how many tokens are kept?",
        truth=2,
        tempting=4,
        why="0.4 alone is not enough; with one more there are 0.6. The three that are equally likely have an order all "
        "the same, the one that the sort gives them, and one of them suffices.",
    ),
    reference=keep_nucleus,
    cases=nucleus_cases,
    see='chapter 11, "By hand"; the hints of this task',
    gradients=False,
    reward=show_nucleus,
    extra=[keeps_few_of_the_ties],
    mistakes=[
        Mistake(
            "crossing token dropped",
            "the token that crosses top_p is dropped, and with it every token when the likeliest is enough by itself",
            nucleus(lambda values, sums, top_p: sums > top_p),
        ),
        Mistake(
            "crossing token dropped",
            "the token that crosses top_p is dropped (the likeliest is kept in any case)",
            nucleus(at_least_one),
        ),
        Mistake("order not undone", "the result is sorted: place 0 is the likeliest token now, and no longer token 0",
                nucleus(right_rule, unsort=False)),
        Mistake("gathered back", "each row holds the right numbers, at the wrong tokens: `order[b, j]` is the token "
                "that stands at place j, so write to the places in `order` (scatter); gather reads at them",
                gathered_back),
        Mistake("not divided", "the probabilities that are kept no longer sum to 1", nucleus(right_rule, divide=None)),
        Mistake(
            "threshold",
            "tokens are kept by their own probability; top_p is about the sum of those that are likelier",
            nucleus(lambda values, sums, top_p: values < 1 - top_p),
        ),
        Mistake("threshold", "tokens whose own probability is below top_p are dropped",
                nucleus(lambda values, sums, top_p: values < top_p)),
        Mistake(
            "least likely kept",
            "the sum runs from the least likely token upwards",
            lambda p, top_p: (lambda v, o: (lambda k: k / k.sum(-1, keepdim=True))(
                torch.zeros_like(p).scatter(1, o, v.masked_fill(v.cumsum(-1) - v >= top_p, 0.0))))(*p.sort(dim=-1)),
        ),
        Mistake("nothing dropped", "all tokens are kept", lambda p, top_p: p / p.sum(-1, keepdim=True)),
        Mistake(
            "not sorted",
            "the sum runs over the tokens in the order of their ids: it is to run from the likeliest",
            lambda p, top_p: (lambda k: k / k.sum(-1, keepdim=True))(p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)),
        ),
        Mistake("limit not left out", "where the likeliest sum to top_p exactly, one more is kept: a token is kept if "
                "those before it have less than top_p", nucleus(lambda values, sums, top_p: sums - values > top_p)),
        Mistake("one token too many", "the token after the one that crosses top_p is kept, too",
                nucleus(lambda values, sums, top_p: F.pad(sums - values, (1, 0))[:, :-1] >= top_p)),
        Mistake("divided by another number", "what is kept is divided by top_p: its sum is larger, as a rule",
                nucleus(right_rule, divide=lambda kept, top_p: kept / top_p)),
        Mistake("divided by another number", "what is kept is divided by the sum over the whole batch: each row has "
                "its "
                "own", nucleus(right_rule, divide=lambda kept, top_p: kept / kept.sum())),
        Mistake("softmax of probabilities", "what is kept went through a softmax, which gives the dropped ones a share "
                "again: divide by the sum", [nucleus(right_rule, divide=lambda kept, top_p: kept.softmax(-1))]),
    ],
)  # fmt: skip

# --- 11.3 --------------------------------------------------------------------------------------------------------

TOY = SimpleNamespace(num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=4, hidden_size=16)


def fill(cache_class, steps, seed, batch_size=2, dtype=torch.float32):
    """Feed some steps through all layers, as a model does, and gather all that comes back.

    A step is a number of new tokens, or ("crop", length).

    It ends at the first `update` that moves the length: what comes after would be written behind it.
    """
    cache = cache_class(TOY, batch_size, sum(new for new in steps if isinstance(new, int)) + 2, dtype=dtype)
    seen = []
    for number, new in enumerate(steps):
        if isinstance(new, tuple):
            if not callable(getattr(cache, "crop", None)):
                raise Found("no crop", "your cache has no method `crop`", "the chapter's has none: it is new here")
            cache.crop(new[1])
            seen.append(torch.tensor(cache.length))
            continue
        before = int(cache.length)
        for layer in range(TOY.num_hidden_layers):
            at = 100 * seed + 10 * number + layer
            key, value = (numbers(at + extra, batch_size, 2, new, 4, dtype=dtype) for extra in (0, 5000))
            k, v = cache.update(key, value, layer)
            seen += [k.clone(), v.clone()]
            if int(cache.length) != before:
                return {"what came back": seen, "moved in `update` of layer": layer}
        cache.advance(new)
        seen.append(torch.tensor(cache.length))
    return {"what came back": seen, "moved in `update` of layer": None}


def cache_cases(seed):
    k = larger(seed)
    yield Case(((5 + k, 1, 1), seed), note=f"a prompt of {5 + k} tokens, then two single ones")
    yield Case(((3, 2, 1, 1), seed), note="3 tokens, 2, 1 and 1")
    yield Case(((1, 4), seed, 3), note="a batch of 3")
    yield Case(((4 + k, 1, 1, ("crop", 5 + k), 1, 2), seed), note=f"{4 + k} tokens, 1, 1; crop({5 + k}); 1 and 2")
    yield Case(((3, ("crop", 0), 2), seed), note="3 tokens, crop(0), 2 tokens")
    yield Case(((2, 1), seed, 2, torch.bfloat16), note="dtype bfloat16")


class Plain(KVCache):
    """The reference: the package's cache, and a way back."""

    def crop(self, length):
        self.length = length


class MovesInUpdate(Plain):
    def update(self, key, value, layer_idx):
        result = super().update(key, value, layer_idx)
        self.length += key.shape[2]
        return result

    def advance(self, new_tokens):
        pass


class MovesInFirst(Plain):
    def update(self, key, value, layer_idx):
        if layer_idx == 0:
            self.length += key.shape[2]
        return super().update(key, value, layer_idx)

    def advance(self, new_tokens):
        pass


class IgnoresDtype(Plain):
    def __init__(self, config, batch_size, max_length, dtype=torch.float32, device="cpu"):
        super().__init__(config, batch_size, max_length)


class NeverMoves(Plain):
    def advance(self, new_tokens):
        pass


class ReturnsNewOnly(Plain):
    def update(self, key, value, layer_idx):
        super().update(key, value, layer_idx)
        return key, value


class ReturnsEverything(Plain):
    def update(self, key, value, layer_idx):
        super().update(key, value, layer_idx)
        return self.keys[layer_idx], self.values[layer_idx]


class OneLayerForAll(Plain):
    def update(self, key, value, layer_idx):
        return super().update(key, value, 0)


class SwapsKeysAndValues(Plain):
    def update(self, key, value, layer_idx):
        k, v = super().update(key, value, layer_idx)
        return v, k


class NewestFirst(Plain):
    def update(self, key, value, layer_idx):
        k, v = super().update(key, value, layer_idx)
        old = self.length
        return torch.cat([k[:, :, old:], k[:, :, :old]], 2), torch.cat([v[:, :, old:], v[:, :, :old]], 2)


class AdvancesByOne(Plain):
    def advance(self, new_tokens):
        self.length += 1


class NeverCropped(Plain):
    def crop(self, length):
        pass


class CropErases(Plain):
    def crop(self, length):
        self.keys[..., length:, :] = 0
        self.values[..., length:, :] = 0


class CropsSoMany(Plain):
    def crop(self, length):
        self.length -= length


class CropCopies(Plain):
    """The tensors are cut off: later tokens find no room."""

    def crop(self, length):
        self.keys, self.values = self.keys[..., :length, :].clone(), self.values[..., :length, :].clone()
        self.length = length


class CropStartsAgain(Plain):
    def crop(self, length):
        self.length = 0


class AdvanceSets(Plain):
    def advance(self, new_tokens):
        self.length = new_tokens


class ReturnsOldOnly(Plain):
    def update(self, key, value, layer_idx):
        super().update(key, value, layer_idx)
        return self.keys[layer_idx, :, :, : self.length], self.values[layer_idx, :, :, : self.length]


class RoomForQueries(Plain):
    def __init__(self, config, *sizes, **named):
        super().__init__(
            SimpleNamespace(**{**vars(config), "num_key_value_heads": config.num_attention_heads}), *sizes, **named
        )


class OneMemory(Plain):
    def __init__(self, *sizes, **named):
        super().__init__(*sizes, **named)
        self.values = self.keys


class CountsHeads(Plain):
    def update(self, key, value, layer_idx):
        end = self.length + key.shape[1]
        self.keys[layer_idx, :, :, self.length : end] = key
        self.values[layer_idx, :, :, self.length : end] = value
        return self.keys[layer_idx, :, :, :end], self.values[layer_idx, :, :, :end]


class WritesInFront(Plain):
    def update(self, key, value, layer_idx):
        L = key.shape[2]
        self.keys[layer_idx, :, :, :L], self.values[layer_idx, :, :, :L] = key, value
        return self.keys[layer_idx, :, :, : self.length + L], self.values[layer_idx, :, :, : self.length + L]


def moved_in_update(case, got, want):
    layer = got["moved in `update` of layer"]
    if layer is None:
        return None
    return Finding(
        "moved on in update",
        f"after `update` of layer {layer}, and before `advance`, `length` has changed",
        "all layers write to the same columns: `length` moves once for all of them, in `advance`",
    )


def allocated_once(kind):
    """The two tensors are made in the constructor, and what comes back are windows onto them."""
    cache = kind(TOY, 2, 9)
    tensors = {name: tensor for name, tensor in vars(cache).items() if isinstance(tensor, torch.Tensor)}
    sizes = [tensor.numel() for tensor in tensors.values()]
    if sizes.count(3 * 2 * 2 * 9 * 4) < 2:
        return Finding(
            "not allocated once",
            f"after the constructor the cache holds tensors of {sizes or 'no'} numbers; for 3 layers, 2 rows, 2 heads, "
            "9 tokens and head size 4 two of 432 are expected",
            "reserve the whole room in the constructor: growing by torch.cat copies all that is held, at every token",
        )
    try:
        k, _ = cache.update(numbers(0, 2, 2, 3, 4), numbers(1, 2, 2, 3, 4), 1)
    except Exception as error:
        return Finding(
            "needs layer 0 first",
            f"a fresh cache refused `update` for layer 1 before layer 0: {type(error).__name__}: {error}",
            "`update` of one layer must not need another: `length` is moved by `advance` alone",
        )
    if k.untyped_storage().data_ptr() not in {t.untyped_storage().data_ptr() for t in tensors.values()}:
        return Finding(
            "copied",
            "the keys that come back lie in memory of their own",
            "a slice of the cache is a view and costs nothing; clone, cat or indexing with a list copies",
        )
    return None


def show_cache(thing):
    cache = thing(TOY, 1, 8)
    for new in (5, 1, 1):
        for layer in range(3):
            cache.update(torch.ones(1, 2, new, 4), torch.ones(1, 2, new, 4), layer)
        cache.advance(new)
        print("  " + "■" * cache.length + "□" * (8 - cache.length) + f"   {cache.length} of 8 columns")
    cache.crop(6)
    print("  " + "■" * cache.length + "□" * (8 - cache.length) + "   after crop(6)")
    if trained() is not None:
        print("  With your cache in the trained model:")
        another_way(thing)


@torch.no_grad()
def another_way(kind, words: int = 2):
    """Let the trained model write a caption, take it back to its first words, and put the second likeliest next."""
    (model, processor), image = trained(), picture(1)
    inputs = processor(text=[PROMPT], images=[image])
    length = inputs["input_ids"].shape[1]
    cache = kind(model.config.text_config, 1, length + 32)
    fed = {"pixel_values": inputs["pixel_values"]}

    def logits(ids):  # [1, L] -> [V], the scores of the token that comes next
        answer = max(cache.length + ids.shape[1] - length, 0)
        types = torch.tensor([[0] * length + [1] * answer])
        seen = model(ids, fed.pop("pixel_values", None), torch.ones_like(types), types, kv_cache=cache)
        return seen.logits[0, -1]

    def write(scores, chosen):
        while chosen[-1:] != [model.config.eos_token_id] and len(chosen) < 30:
            chosen.append(int(scores.argmax()))
            before = scores
            scores = logits(torch.tensor([[chosen[-1]]]))
            if len(chosen) == words + 1:
                kept.append(before)
        return processor.decode(chosen[:-1])

    kept: list[torch.Tensor] = []
    chosen: list[int] = []
    print(f"    {write(logits(inputs['input_ids']), chosen)}")
    cache.crop(length + words)
    second = int(kept[0].topk(2).indices[1])
    print(f"    {write(logits(torch.tensor([[second]])), [*chosen[:words], second])}   (taken back to {words} words)")


CACHE = Task(
    id="11.3",
    title="KVCache, and a way back",
    points=4,
    minutes=10,
    level="medium",
    importance="core",
    reference=Plain,
    cases=cache_cases,
    use=fill,
    symptoms=[moved_in_update],
    gradients=False,
    see='chapter 11, "The cache"; the hints of this task',
    reward=show_cache,
    extra=[allocated_once],
    mistakes=[
        Mistake("moved on by every layer", "`length` moves on in `update`, and the layers that come after write behind "
                "the first: it moves once for all of them, in `advance`", [MovesInUpdate, MovesInFirst]),
        Mistake("dtype ignored", "the cache is not of the dtype that the constructor is given: bfloat16 was asked for",
                IgnoresDtype),
        Mistake("crop does nothing", "after `crop` the cache holds as many tokens as before",
                [NeverCropped, CropErases]),
        Mistake("crop takes off so many", "`crop(5)` takes five tokens off; it is to leave five", CropsSoMany),
        Mistake("room cut off", "`crop` cuts the tensors themselves, and the room behind is lost: what is behind "
                "`length` may stay, it is written over", CropCopies),
        Mistake("crop empties", "`crop` begins at 0 whatever length is given", CropStartsAgain),
        Mistake("never moved on", "the place does not move on: each token is written over the one before", NeverMoves),
        Mistake("new tokens only", "what comes back are the new tokens alone: attention needs all so far",
                ReturnsNewOnly),
        Mistake("empty columns returned", "what comes back has all columns, the unwritten ones too: attention would "
                "look at zeros", ReturnsEverything),
        Mistake("one layer for all", "all layers write to the same place, over one another", OneLayerForAll),
        Mistake("key and value swapped", "keys come back as values and values as keys", SwapsKeysAndValues),
        Mistake("newest first", "the new tokens stand before the old ones", NewestFirst),
        Mistake("moved on by one", "the place moves on by one, however many tokens were written", AdvancesByOne),
        Mistake("advance sets", "`advance` makes `length` the number of the new tokens: it is to add it to those "
                "that are "
                "held", AdvanceSets),
        Mistake("old tokens only", "what comes back are the tokens of before, without the new ones: a token sees "
                "itself, "
                "too", ReturnsOldOnly),
        Mistake("query heads", "there is room for all query heads: only key/value heads are kept", RoomForQueries),
        Mistake("one memory for both", "keys and values lie in the same memory: what is written last is both",
                OneMemory),
        Mistake("heads counted", "the number of new tokens is read off the axis of the heads: [B, H_kv, L, d]",
                CountsHeads),
        Mistake("written in front", "the new tokens are written from column 0 on, over the old ones", WritesInFront),
    ],
)  # fmt: skip

# --- 11.4 --------------------------------------------------------------------------------------------------------


class Script:
    """A model for checking loops: it writes a fixed text for each row, and notes what it was fed.

    Called with new tokens [B, L], it returns the logits [B, V] of the next token.
    """

    def __init__(self, *texts, V=12, max_new_tokens=1000):
        self.texts, self.V, self.step, self.fed, self.max_new_tokens = texts, V, 0, [], max_new_tokens

    def __call__(self, tokens):
        self.fed.append(tokens.tolist())
        if self.step > self.max_new_tokens + 1:  # one call too many is told by what was fed; here nothing ends it
            raise Found(
                "no end",
                f"the model was called {self.step + 1} times for max_new_tokens = {self.max_new_tokens}",
                "nothing ends your loop here: it must end after max_new_tokens also where a row never says eos",
            )
        logits = torch.zeros(len(self.texts), self.V)
        for row, text in enumerate(self.texts):
            logits[row, text[min(self.step, len(text) - 1)]] = 5.0
        self.step += 1
        return logits


EOS, PAD = 1, 0


def write(next_logits, prompt, max_new_tokens, eos, pad):
    """The reference: greedy, rows end by themselves."""
    logits = next_logits(prompt)
    finished = torch.zeros(len(prompt), dtype=torch.bool)
    written = []
    for step in range(max_new_tokens):
        tokens = logits.argmax(-1).masked_fill(finished, pad)
        written.append(tokens)
        finished = finished | (tokens == eos)
        if finished.all() or step + 1 == max_new_tokens:
            break
        logits = next_logits(tokens[:, None])
    return torch.stack(written, dim=1)


def run_loop(loop, texts, prompt, max_new_tokens):
    script = Script(*texts, max_new_tokens=max_new_tokens)
    written = loop(script, prompt, max_new_tokens, EOS, PAD)
    return {"written": written, "what the model was fed": str(script.fed)}


def loop_cases(seed):
    k = larger(seed)
    prompt = torch.tensor([[2, 7, 3], [2, 8, 3]])
    yield Case(
        (((5, 6, 7, EOS), (9, EOS, 4, 4)), prompt, 8),
        sizes={"B": 2},
        note="first what the model answers, row by row (eos is 1, pad is 0), then the prompt and max_new_tokens; "
        "the second row ends first",
    )
    yield Case(
        (((5, 6, 7, 8, 9), (4, 5, 4, 5, 4)), prompt, 3 + k),
        sizes={"B": 2},
        note=f"max_new_tokens = {3 + k}, no row ends",
    )
    yield Case((((EOS, 4), (EOS, 5)), prompt, 4), sizes={"B": 2}, note="both rows end at once")
    yield Case((((5, EOS),), prompt[:1].repeat(1, 1 + k), 6 + k), sizes={"B": 1}, note="one row")


def loop(
    finish=True, mask=True, feed_all=False, extra=False, drop_eos=False, any_row=False, forget=False, more=0, axis=-1,
    eos_lost=False, feed=lambda tokens: tokens[:, None], ask_first=False, ends=lambda tokens, eos, pad: tokens == eos,
    same_step=False,
):  # fmt: skip
    """The reference with one thing done differently."""

    def function(next_logits, prompt, max_new_tokens, eos, pad):
        sequence, logits = prompt, next_logits(prompt)
        finished = torch.zeros(len(prompt), dtype=torch.bool)
        written = []
        for step in range(max_new_tokens + more):
            tokens = logits.argmax(axis)[: len(prompt)]
            if mask:
                tokens = tokens.masked_fill(finished, pad)
            finished = (finished & (not forget)) | ends(tokens, eos, pad)
            if eos_lost:
                tokens = tokens.masked_fill(finished, pad)
            ended = finished.any() if any_row else finished.all()
            if same_step:
                ended = (tokens == eos).all()
            if ask_first:
                logits = next_logits(feed(tokens))
            if drop_eos and ended:
                break
            written.append(tokens)
            sequence = torch.cat([sequence, tokens[:, None]], dim=1)
            if (finish and ended) or (step + 1 == max_new_tokens + more and not extra):
                break
            if not ask_first:
                logits = next_logits(sequence if feed_all else feed(tokens))
        return torch.stack(written, dim=1) if written else prompt[:, :0]

    return function


def with_prompt(next_logits, prompt, max_new_tokens, eos, pad):
    return torch.cat([prompt, write(next_logits, prompt, max_new_tokens, eos, pad)], dim=1)


def prompt_again(next_logits, prompt, max_new_tokens, eos, pad):
    first = []

    def always_the_prompt(tokens):
        first.append(tokens)
        return next_logits(prompt)

    return write(always_the_prompt, prompt, max_new_tokens, eos, pad)


def ends_before_it_notes(next_logits, prompt, max_new_tokens, eos, pad):
    """As the reference, but a first token is noted in any case."""
    logits, written, finished = next_logits(prompt), [], torch.zeros(len(prompt), dtype=torch.bool)
    for step in range(max_new_tokens):
        tokens = logits.argmax(-1).masked_fill(finished, pad)
        finished = finished | (tokens == eos)
        if finished.all() and written:
            break
        written.append(tokens)
        if step + 1 == max_new_tokens:
            break
        logits = next_logits(tokens[:, None])
    return torch.stack(written, dim=1)


def goes_on(case, got, want) -> Finding | None:
    """Calls that nobody needs, or tokens after the end of all rows."""
    mine, theirs = (result["written"] for result in (got, want))
    steps = theirs.shape[1]
    if mine.shape[1] > steps and torch.equal(mine[:, :steps], theirs):
        return Finding(
            "goes on",
            f"{mine.shape[1]} tokens a row are written, and all rows have ended after {steps}",
            "it goes on after all rows have ended: remember which rows have ended; they need not end in the same step",
        )
    calls, needed = (len(ast.literal_eval(result["what the model was fed"])) for result in (got, want))
    if torch.equal(mine, theirs) and calls > needed:
        return Finding(
            "one step too many",
            f"the tokens are right, and the model was called {calls} times, expected {needed}",
            "the model is called when nobody needs its answer: is there anything left to write before each call?",
        )
    return None


def show_loop(thing):
    words = {5: "a", 6: "small", 7: "red", 8: "ring", EOS: "<eos>", PAD: "<pad>", 9: "two"}
    script = Script((5, 6, 7, 8, EOS), (9, EOS))
    rows = thing(script, torch.tensor([[2, 3], [2, 3]]), 8, EOS, PAD).tolist()
    for row in rows:
        print("  " + " ".join(words[token] for token in row))


LOOP = Task(
    id="11.4",
    title="the loop",
    points=4,
    minutes=15,
    level="hard",
    importance="core",
    prediction=Prediction(
        "A caption of 12 tokens, the last of them <eos>, is written. How often is the model called?",
        truth=12,
        tempting=13,
        why="The prompt's pass chooses the first token, and each token but the last is fed once: 1 + 11.",
    ),
    reference=write,
    cases=loop_cases,
    use=run_loop,
    symptoms=[goes_on],
    gradients=False,
    see='chapter 11, "Prefill and decode"; the hints of this task',
    reward=show_loop,
    mistakes=[
        Mistake("row goes on after EOS", "a row that has ended gets what the model says, and not padding",
                loop(mask=False)),
        Mistake("never stops", "the loop runs to max_new_tokens although all rows have ended", loop(finish=False)),
        Mistake("ends in one step only", "it goes on after all rows have ended: remember which rows have ended; they "
                "need not end in the same step", [loop(same_step=True), loop(same_step=True, mask=False)]),
        Mistake("everything fed again", "the whole sequence is fed at each step: with a cache, the new token alone",
                loop(feed_all=True)),
        Mistake("one step too many", "after the last token the model is called once more, for nothing",
                [loop(extra=True), loop(ask_first=True)]),
        Mistake("EOS left out", "the last column is missing: EOS is a token that was written", loop(drop_eos=True)),
        Mistake("stops at the first end", "the loop ends when one row has ended, and the others are cut off",
                loop(any_row=True)),
        Mistake("prompt in the answer", "the result begins with the prompt: the new tokens alone are asked for",
                with_prompt),
        Mistake("prompt fed again", "the model is fed the prompt at each step: the new token never reaches it",
                prompt_again),
        Mistake("ended rows forgotten", "a row that has ended gets padding once and then goes on: whoever has ended "
                "stays "
                "so", loop(forget=True)),
        Mistake("EOS overwritten", "EOS itself is replaced by padding: only rows that ended before get it",
                loop(eos_lost=True)),
        Mistake("number of tokens", "one token more than max_new_tokens is written", loop(more=1)),
        Mistake("number of tokens", "one token fewer than max_new_tokens is written", loop(more=-1)),
        Mistake("EOS left out", "the last column is missing: EOS is a token that was written", ends_before_it_notes),
        Mistake("argmax over the batch", "the argmax runs over the rows of the batch, not over the vocabulary",
                loop(axis=0)),
        Mistake("token of row 0 for all", "every row is fed the token of row 0",
                loop(feed=lambda tokens: tokens[:1, None].expand(len(tokens), 1))),
        Mistake("end not recognised", "a row ends for you when it writes padding: it ends with EOS",
                loop(ends=lambda tokens, eos, pad: tokens == pad)),
    ],
)  # fmt: skip

# --- 11.5 --------------------------------------------------------------------------------------------------------


def drops_crossing(p, top_p):
    return nucleus(at_least_one)(p, top_p)


def forgets_the_way_back(p, top_p):
    return nucleus(right_rule, unsort=False)(p, top_p)


def does_not_divide(p, top_p):
    return nucleus(right_rule, divide=None)(p, top_p)


def counts_in_row_0(p, top_p):
    values, order = p.sort(dim=-1, descending=True)
    count = int((values[0].cumsum(0) - values[0] < top_p).sum())
    values[:, count:] = 0
    kept = torch.zeros_like(p).scatter(1, order, values)
    return kept / kept.sum(-1, keepdim=True)


def sums_down_the_batch(p, top_p):
    return nucleus(lambda values, sums, top_p: values.cumsum(0) - values >= top_p)(p, top_p)


SAMPLERS = {
    "A": drops_crossing,
    "B": forgets_the_way_back,
    "C": does_not_divide,
    "D": counts_in_row_0,
    "E": sums_down_the_batch,
}


def expose_samplers():
    return {
        "A": (torch.tensor([[0.625, 0.375]]), 0.875),
        "B": (torch.tensor([[0.25, 0.75]]), 1.0),
        "C": (torch.tensor([[0.75, 0.25]]), 0.5),
        "D": (torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.25, 0.25]]), 1.0),
        "E": (torch.tensor([[0.5, 0.5]] * 3), 1.0),
    }


def usable_nucleus(p, top_p):
    if not isinstance(p, torch.Tensor) or p.ndim != 2 or not p.is_floating_point() or not p.numel():
        return "p is to be a tensor [B, V] of floating point numbers, such as torch.tensor([[0.5, 0.5]])"
    if (p < 0).any() or (p.sum(-1) - 1).abs().max() > 1e-4:
        return "each row of p is to be 0 or more, and to sum to 1"
    return None if 0 < top_p <= 1 else f"top_p is {top_p}, expected more than 0 and at most 1"


def show_samplers(expose):
    """The trained model writes through each of the five."""
    if trained() is None:
        print("The trained model is not in assets/tiny-paligemma, so it cannot speak.")
        return
    model, processor = trained()

    def likeliest_kept(function):
        def sample(logits, *settings, **named):
            return function(logits.softmax(-1), 0.9).argmax(-1)

        return sample

    print("  What the trained model writes when the likeliest of the kept tokens is chosen, top_p = 0.9:")
    for name, function in {"right": keep_nucleus, **SAMPLERS}.items():
        with swap_module.swap(None, sample=likeliest_kept(function)):
            text = generate(model, processor, images=[picture(1)], text=[PROMPT], max_new_tokens=30)[0]
        print(f"  {name:5}  {text or '(nothing)'}")


EXPOSE = exposing_task(
    "11.5",
    right=keep_nucleus,
    wrong=SAMPLERS,
    reference=expose_samplers,
    usable=usable_nucleus,
    together={"C": {"E"}},  # E keeps the likeliest of every row, or drops it: it is right only where nothing is dropped
    title="five samplers, five inputs",
    points=4,
    minutes=25,
    level="medium",
    importance="deepen",
    see='chapter 11, "By hand"; the hints of this task',
    reward=show_samplers,
)

TASKS = [TEMPERATURE, NUCLEUS, CACHE, LOOP, EXPOSE]
