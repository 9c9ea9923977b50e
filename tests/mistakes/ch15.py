"""Checkpoints and Gemma 2, as learners write them."""

import json
import re

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from paligemma import checkpoint
from paligemma.modeling_gemma import (
    GemmaMLP,
    GemmaRMSNorm,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    make_attn_mask,
)
from paligemma.modeling_gemma2 import Gemma2Attention, softcap

from . import right, wrong

# --- 15.1 --------------------------------------------------------------------------------------------------------


@right("15.1")
def _(name):
    if name.startswith("model.vision_tower.") or name.startswith("model.multi_modal_projector."):
        name = name[len("model.") :]
    elif name.startswith("model.language_model."):
        name = "language_model.model." + name[len("model.language_model.") :]
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        name = "vision_tower.vision_model." + name[len("vision_tower.") :]
    return name


@right("15.1")
def _(name):
    name = re.sub(r"^(model\.)?vision_tower\.(vision_model\.)?", "vision_tower.vision_model.", name)
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    return re.sub(r"^model\.multi_modal_projector\.", "multi_modal_projector.", name)


@right("15.1")
def _(name):
    """The package's table, longest prefix first."""
    for prefix, published in sorted(checkpoint.PREFIXES, key=lambda pair: -len(pair[0])):
        if name.startswith(prefix):
            return name.replace(prefix, published, 1)
    return name


TABLE = {
    "vision_tower.vision_model.": "vision_tower.vision_model.",
    "vision_tower.": "vision_tower.vision_model.",
    "model.vision_tower.vision_model.": "vision_tower.vision_model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.language_model.": "language_model.model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}


def with_table(*order, stop=True):
    def canonical_name(name):
        for prefix in order:
            if name.startswith(prefix):
                name = TABLE[prefix] + name[len(prefix) :]
                if stop:
                    break
        return name

    return canonical_name


rows = list(TABLE)
right("15.1")(with_table(*rows))
wrong("15.1", "prefixes in the wrong order")(with_table(rows[1], rows[0], *rows[2:]))
wrong("15.1", "prefixes in the wrong order")(with_table(*rows[:2], rows[3], rows[2], *rows[4:]))
wrong("15.1", "prefixes in the wrong order")(with_table(*rows, stop=False))
wrong("15.1", "layout missing")(with_table(rows[0], *rows[2:]))
wrong("15.1", "layout missing")(with_table(*rows[:3], *rows[4:]))
wrong("15.1", "layout missing")(with_table(*rows[:2]))
wrong("15.1", "layout missing")(with_table(*rows[:5]))


@wrong("15.1", "only model. cut off")
def _(name):
    return name[6:] if name.startswith("model.") else name


@wrong("15.1", "decoder's model. lost")
def _(name):
    name = re.sub(r"^(model\.)?vision_tower\.(vision_model\.)?", "vision_tower.vision_model.", name)
    return re.sub(r"^model\.(language_model|multi_modal_projector)\.", r"\1.", name)


@wrong("15.1", "replaced anywhere")
def _(name):
    return "".join(name.split("model."))


@wrong("15.1", "no return")
def _(name):
    for prefix in rows:
        if name.startswith(prefix):
            return TABLE[prefix] + name[len(prefix) :]


# --- 15.2 --------------------------------------------------------------------------------------------------------


def files(**changed):
    model = {"q": (8, 4), "norm": (4,)}
    given = {
        "A": (model, {**model, "post_norm": (4,)}),
        "B": (model, {"q": (8, 4)}),
        "C": (model, {"q": (8, 5), "norm": (4,)}),
        "E": (model, {"query": (8, 4), "norm": (4,)}),
    }
    given["D"] = ({"q": (8, 4)}, {"q": (32,)})
    given["C"] = ({"q": (8, 4)}, {"q": (8, 5)})
    return lambda: {**given, **changed}


right("15.2")(files())
right("15.2")(files(E=({"a": (2,), "b": (2,)}, {"b": (2,), "c": (2,)})))
right("15.2")(files(E=({"a": (2,), "b": (3,)}, {"b": (3,), "a": (2,)})))
wrong("15.2", "not exposed")(files(A=({"q": (2,)}, {"q": (2,)})))
wrong("15.2", "not exposed")(files(B=({"q": (2,)}, {"q": (2,), "k": (2,)})))
wrong("15.2", "not exposed")(files(D=({"q": (2, 3)}, {"q": (2, 4)})))
wrong("15.2", "exposes others")(files(C=({"q": (8, 4)}, {"q": (4, 8)})))
wrong("15.2", "not exposed")(files(E=({"q": (2,)}, {"q": (3,)})))
wrong("15.2", "not an input")(files(E=({}, {"q": (3,)})))
wrong("15.2", "not an input")(files(E=({"q": [3]}, {"q": (3,)})))
wrong("15.2", "not an input")(files(E={"q": (3,)}))
wrong("15.2", "structure")(lambda: {"A": ({"q": (1,)}, {"k": (1,)})})


# --- 15.3 --------------------------------------------------------------------------------------------------------


@right("15.3")
def _(query, key, value, allowed, scale, cap=None):
    scores = query @ key.transpose(2, 3) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return weights @ value


@right("15.3")
def _(query, key, value, allowed, scale, cap=None):
    scores = softcap(torch.matmul(query * scale, key.mT), cap)
    bias = torch.zeros(allowed.shape).masked_fill(allowed.logical_not(), float("-inf"))
    return (F.softmax(scores.float() + bias, dim=-1).type_as(query)) @ value


@right("15.3")
def _(query, key, value, allowed, scale, cap=None):
    """Head by head, exponentials by hand."""
    out = []
    for h in range(query.shape[1]):
        s = torch.einsum("bld,btd->blt", query[:, h], key[:, h]).float() * scale
        s = s if cap is None else cap * (s / cap).tanh()
        e = (s - s.amax(-1, keepdim=True)).exp() * allowed[:, 0]
        out.append((e / e.sum(-1, keepdim=True)).to(value.dtype) @ value[:, h])
    return torch.stack(out, dim=1)


def attention(scores, softmax=lambda s: F.softmax(s, dim=-1, dtype=torch.float32)):
    def capped_attention(query, key, value, allowed, scale, cap=None):
        s = scores(query @ key.transpose(2, 3), scale, cap, allowed)
        return softmax(s).to(query.dtype) @ value

    return capped_attention


def hide(s, allowed):
    return s.masked_fill(~allowed, torch.finfo(s.dtype).min)


wrong("15.3", "cap after the mask")(attention(lambda s, scale, cap, ok: softcap(hide(s * scale, ok), cap)))
wrong("15.3", "cap after the mask")(attention(lambda s, scale, cap, ok: softcap(
    torch.where(ok, s * scale, float("-inf")), cap)))  # fmt: skip
wrong("15.3", "not divided by the cap")(attention(lambda s, scale, cap, ok: hide(
    torch.tanh(s * scale) * cap if cap else s * scale, ok)))  # fmt: skip
wrong("15.3", "not multiplied by the cap")(attention(lambda s, scale, cap, ok: hide(
    torch.tanh(s * scale / cap) if cap else s * scale, ok)))  # fmt: skip
wrong("15.3", "cap before the scaling")(attention(lambda s, scale, cap, ok: hide(softcap(s, cap) * scale, ok)))
wrong("15.3", "cap forgotten")(attention(lambda s, scale, cap, ok: hide(s * scale, ok)))
wrong("15.3", "cut instead of bent")(attention(lambda s, scale, cap, ok: hide(
    s * scale if cap is None else torch.clip(s * scale, -cap, cap), ok)))  # fmt: skip
wrong("15.3", "scale forgotten")(attention(lambda s, scale, cap, ok: hide(softcap(s, cap), ok)))
wrong("15.3", "head size instead of the scale")(attention(lambda s, scale, cap, ok: hide(softcap(s / 2, cap), ok)))
wrong("15.3", "mask upside down")(attention(lambda s, scale, cap, ok: softcap(s * scale, cap).masked_fill(ok, -1e9)))
wrong("15.3", "mask forgotten")(attention(lambda s, scale, cap, ok: softcap(s * scale, cap)))
wrong("15.3", "hidden scores set to zero")(attention(lambda s, scale, cap, ok: softcap(s * scale, cap) * ok))
wrong("15.3", "softmax over the wrong axis")(attention(
    lambda s, scale, cap, ok: hide(softcap(s * scale, cap), ok), lambda s: s.float().softmax(dim=2)))  # fmt: skip
wrong("15.3", "no cap not allowed for")(
    attention(lambda s, scale, cap, ok: hide(cap * torch.tanh(s * scale / cap), ok))
)
wrong("15.3", "dtype")(lambda query, key, value, ok, scale, cap=None: (
    hide(softcap(query @ key.mT * scale, cap).float(), ok).softmax(-1) @ value.float()))  # fmt: skip

# --- 15.4 --------------------------------------------------------------------------------------------------------


class Base(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn = Gemma2Attention(config, layer_idx)
        self.mlp = GemmaMLP(config)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            norm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            setattr(self, f"{name}_layernorm", norm)


@right("15.4")
class _(Base):
    def forward(self, x, position_embeddings, attention_mask=None):
        h = self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)[0]
        x = x + self.post_attention_layernorm(h)
        h = self.mlp(self.pre_feedforward_layernorm(x))
        return x + self.post_feedforward_layernorm(h)


@right("15.4")
class _(Base):
    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, position_embeddings, attention_mask=attention_mask)
        hidden_states = residual + self.post_attention_layernorm(hidden_states)
        residual = hidden_states
        for part in (self.pre_feedforward_layernorm, self.mlp, self.post_feedforward_layernorm):
            hidden_states = part(hidden_states)
        return residual.add(hidden_states)


def listing(inside=False, kept=False, named=False):
    """The code in the notebook, with some of its faults mended."""

    class Suspect(Base):
        def forward(self, hidden_states, position_embeddings, attention_mask=None):
            attended, _ = self.self_attn(self.input_layernorm(hidden_states), position_embeddings, attention_mask)
            if inside:
                hidden_states = hidden_states + self.post_attention_layernorm(attended)
            else:
                hidden_states = self.post_attention_layernorm(hidden_states + attended)
            one, two = self.post_feedforward_layernorm, self.pre_feedforward_layernorm
            if named:
                one, two = two, one
            if kept:
                return hidden_states + two(self.mlp(one(hidden_states)))
            hidden_states = one(hidden_states)
            return hidden_states + two(self.mlp(hidden_states))

    return Suspect


wrong("15.4", "3 left")(listing())
wrong("15.4", "2 left")(listing(inside=True))
wrong("15.4", "2 left")(listing(kept=True))
wrong("15.4", "2 left")(listing(named=True))
wrong("15.4", "norms swapped")(listing(inside=True, kept=True))
wrong("15.4", "residual from the norm")(listing(inside=True, named=True))
wrong("15.4", "norm outside the residual")(listing(kept=True, named=True))


@wrong("15.4", "Gemma 1's layer")
class _(Base):
    def forward(self, x, position_embeddings, attention_mask=None):
        x = x + self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)[0]
        return x + self.mlp(self.post_attention_layernorm(x))


@wrong("15.4", "post_attention_layernorm before the MLP")
class _(Base):
    def forward(self, x, position_embeddings, attention_mask=None):
        x = x + self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)[0]
        return x + self.post_feedforward_layernorm(self.mlp(self.post_attention_layernorm(x)))


@wrong("15.4", "norm forgotten")
class _(Base):
    def forward(self, x, position_embeddings, attention_mask=None):
        h = self.self_attn(self.input_layernorm(x), position_embeddings, attention_mask)[0]
        x = x + self.post_attention_layernorm(h)
        return x + self.mlp(self.pre_feedforward_layernorm(x))


@wrong("15.4", "weights do not fit")
class _(Base):
    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        del self.post_feedforward_layernorm


# --- 15.5 --------------------------------------------------------------------------------------------------------


@right("15.5")
def _(is_answer, window):
    L = is_answer.shape[1]
    distance = torch.arange(L)[:, None] - torch.arange(L)[None, :]  # [L, L]
    block = ~is_answer[:, :, None] & ~is_answer[:, None, :]
    return block | ((distance >= 0) & (distance < window))


@right("15.5")
def _(is_answer, window):
    """The package's rule."""
    return make_attn_mask(torch.ones_like(is_answer, dtype=torch.long), is_answer.long(), window=window)


@right("15.5")
def _(is_answer, window):
    band = torch.ones(is_answer.shape[1], is_answer.shape[1], dtype=torch.bool).tril().triu(1 - window)
    mask = band.repeat(len(is_answer), 1, 1)
    for b, row in enumerate(is_answer):
        prefix = int((~row).sum())
        mask[b, :prefix, :prefix] = True
    return mask


def band_mask(low=0, high=lambda w: w, block=lambda a: ~a[:, :, None] & ~a[:, None, :]):
    def window_mask(is_answer, window):
        place = torch.arange(is_answer.shape[1])
        back = place[:, None] - place
        return block(is_answer) | ((back >= low) & (back < high(window)))

    return window_mask


wrong("15.5", "window off by one")(band_mask(high=lambda w: w + 1))
wrong("15.5", "window off by one")(band_mask(high=lambda w: w - 1))
wrong("15.5", "causal")(band_mask(block=lambda a: torch.zeros(len(a), 1, 1, dtype=torch.bool)))
wrong("15.5", "window forgotten")(band_mask(high=lambda w: 999))
wrong("15.5", "window in the answer only")(band_mask(block=lambda a: ~a[:, None, :]))
wrong("15.5", "future seen")(band_mask(low=-999))
wrong("15.5", "shape")(lambda is_answer, window: band_mask()(is_answer, window)[:, None])
wrong("15.5", "dtype")(lambda is_answer, window: band_mask()(is_answer, window).float())
wrong("15.5", "transposed")(lambda is_answer, window: band_mask()(is_answer, window).transpose(1, 2))


@wrong("15.5", "window over picture and prompt")
def _(is_answer, window):
    ones = torch.ones_like(is_answer, dtype=torch.long)
    place = torch.arange(is_answer.shape[1])
    return make_attn_mask(ones, is_answer.long()) & (place[:, None] - place < window)


@wrong("15.5", "window over picture and prompt")
def _(is_answer, window):
    ones = torch.ones_like(is_answer, dtype=torch.long)
    place = torch.arange(is_answer.shape[1])
    return make_attn_mask(ones, is_answer.long()) & ((place[:, None] - place).abs() < window)


# --- 15.6 --------------------------------------------------------------------------------------------------------


def read(folder):
    return PaliGemmaConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


@right("15.6")
def _(folder):
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(read(folder))
    weights = {}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            if not name.endswith("lm_head.weight"):
                weights[checkpoint.canonical_name(name)] = file.get_tensor(name)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong_ones = [n for n in expected if n not in weights or weights[n].shape != expected[n]]
    wrong_ones += [n for n in weights if n not in expected]
    if wrong_ones:
        raise ValueError(f"these do not fit: {wrong_ones}")
    model.load_state_dict(weights, assign=True)
    return model.eval()


@right("15.6")
def _(folder):
    """Parameter by parameter."""
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(read(folder)).eval()
    weights = {checkpoint.canonical_name(n): t for n, t in load_file(folder / "model.safetensors").items()}
    weights.pop("lm_head.weight", None)
    for name, parameter in list(model.named_parameters()):
        tensor = weights.pop(name)  # a KeyError for what is missing
        assert tensor.shape == parameter.shape, name
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor))
    assert not weights, sorted(weights)
    return model


@right("15.6")
def _(folder):
    """torch's own strictness is enough."""
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(read(folder))
    weights = {checkpoint.canonical_name(n): t for n, t in load_file(folder / "model.safetensors").items()}
    weights.pop("lm_head.weight", None)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.train(False)


def loader(device="meta", head=False, name=checkpoint.canonical_name, keep=None, evaluate=True, **options):
    def load(folder):
        with torch.device(device):
            model = PaliGemmaForConditionalGeneration(read(folder))
        weights = {name(n): t for n, t in load_file(folder / "model.safetensors").items()}
        if not head:
            weights.pop("lm_head.weight", None)
        if keep:
            weights = keep(model.state_dict(), weights)
        model.load_state_dict(weights, **{"assign": True, **options})
        return model.eval() if evaluate else model

    return load


wrong("15.6", "copied instead of assigned")(loader(device="cpu", assign=False))
wrong("15.6", "no memory")(loader(assign=False))
wrong("15.6", "not strict")(loader(strict=False))
wrong("15.6", "not strict")(loader(strict=False, head=True))
wrong("15.6", "unexpected not noticed")(loader(keep=lambda e, w: {n: w[n] for n in w if n in e}))
wrong("15.6", "names not translated")(loader(name=str))
wrong("15.6", "head not skipped")(loader(head=True))
wrong("15.6", "left in training mode")(loader(evaluate=False))


@wrong("15.6", "missing not noticed")
def _(folder):
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(read(folder))
    weights = {checkpoint.canonical_name(n): t for n, t in load_file(folder / "model.safetensors").items()}
    weights.pop("lm_head.weight", None)
    result = model.load_state_dict(weights, assign=True, strict=False)
    if result.unexpected_keys:
        raise ValueError(result.unexpected_keys)
    return model.eval()


@wrong("15.6", "no return")
def _(folder):
    loader()(folder)


@wrong("15.6", "copied instead of assigned")
def _(folder):
    model = PaliGemmaForConditionalGeneration(read(folder))
    weights = {checkpoint.canonical_name(n): t for n, t in load_file(folder / "model.safetensors").items()}
    weights.pop("lm_head.weight", None)
    state = model.state_dict()
    assert set(state) == set(weights)
    with torch.no_grad():
        for name, tensor in state.items():
            assert tensor.shape == weights[name].shape
            tensor.copy_(weights[name])
    return model.eval()
