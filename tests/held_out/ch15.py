"""Held-out solutions of chapter 15."""

# ruff: noqa: E501
# fmt: off

from . import answer, change, exchange, right, wrong

# --- 15.1 -------------------------------------------------------------------------------------------------------------

NAME = """
PAIRS = [
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("vision_tower.vision_model.", "vision_tower.vision_model."),
    ("vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
]


def canonical_name(name):
    for prefix, published in PAIRS:
        if name.startswith(prefix):
            return published + name[len(prefix):]
    return name
"""
change("15.1", "short prefix first", NAME, ('    ("vision_tower.vision_model.", "vision_tower.vision_model."),\n    ("vision_tower.", "vision_tower.vision_model."),', '    ("vision_tower.", "vision_tower.vision_model."),\n    ("vision_tower.vision_model.", "vision_tower.vision_model."),'), truth="vision_tower. is tried before vision_tower.vision_model.: vision_model stands there twice")
change("15.1", "short prefix first in memory", NAME, ('    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),\n    ("model.vision_tower.", "vision_tower.vision_model."),', '    ("model.vision_tower.", "vision_tower.vision_model."),\n    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),'), truth="model.vision_tower. is tried before model.vision_tower.vision_model.")
change("15.1", "projector in memory forgotten", NAME, ('    ("model.multi_modal_projector.", "multi_modal_projector."),\n', ""), truth="model.multi_modal_projector. is not handled")
change("15.1", "saved encoder forgotten", NAME, ('    ("vision_tower.", "vision_tower.vision_model."),\n', ""), truth="vision_tower. without vision_model is not handled")
change("15.1", "decoder without model", NAME, ('"language_model.model."', '"language_model."'), truth="the decoder becomes language_model. instead of language_model.model.")
change("15.1", "published decoder changed", NAME, ('    ("model.language_model.", "language_model.model."),\n', '    ("model.language_model.", "language_model.model."),\n    ("language_model.", "language_model.model."),\n'), truth="a published language_model.model. name gets model twice")
change("15.1", "replaced anywhere", NAME, ("if name.startswith(prefix)", "if prefix in name"), ("published + name[len(prefix):]", "name.replace(prefix, published)"), truth="replaces anywhere in the name, not only at its beginning")
change("15.1", "every model. stripped", NAME, ("    return name\n", "    return name.removeprefix(\"model.\")\n"), truth="model. is stripped from names that are unknown, too")
change("15.1", "in memory 4.52 forgotten", NAME, ('    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),\n', ""), truth="model.vision_tower.vision_model. gets vision_model twice")
change("15.1", "unknown names give None", NAME, ("    return name\n", "    return None\n"), truth="unknown names give None instead of coming back")
wrong("15.1", "lstrip", """
def canonical_name(name):
    in_memory = name.startswith(("model.vision_tower.", "model.multi_modal_projector.", "model.language_model."))
    if in_memory:
        name = name.lstrip("model.")
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        name = "vision_tower.vision_model." + name.removeprefix("vision_tower.")
    if in_memory and name.startswith("language_model."):
        name = "language_model.model." + name.removeprefix("language_model.")
    return name
""", truth="lstrip takes off letters, not a prefix")
wrong("15.1", "prefix taken off and text replaced anywhere", """
def canonical_name(name):
    if name.startswith("model."):
        name = name[len("model.") :]
        name = name.replace("language_model.", "language_model.model.")
    if "vision_tower." in name and "vision_model." not in name:
        name = name.replace("vision_tower.", "vision_tower.vision_model.")
    return name
""", truth="model. is taken off any name, unknown ones too, and texts are replaced anywhere", says="`model.` is cut off a name that is in none of the four")
change("15.1", "prefix without its dot", NAME, ('"vision_tower.", "vision_tower.vision_model."', '"vision_tower", "vision_tower.vision_model"'), truth="the prefix is compared without its dot: names that only begin alike are changed")
right("15.1", "regular expressions", r"""
import re


def canonical_name(name):
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    name = re.sub(r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision_tower.vision_model.", name)
    return re.sub(r"^model\.multi_modal_projector\.", "multi_modal_projector.", name)
""")

# --- 15.2 -------------------------------------------------------------------------------------------------------------

LOADERS = {
    "A": ({"w": (2,)}, {"w": (2,), "b": (3,)}),
    "B": ({"w": (2,), "b": (3,)}, {"w": (2,)}),
    "C": ({"w": (4, 3)}, {"w": (4, 2)}),
    "D": ({"w": (4, 3)}, {"w": (12,)}),
    "E": ({"w": (4,)}, {"v": (4,)}),
}
wrong("15.2", "A and B exchanged", answer("expose", exchange(LOADERS, "A", "B")), truth="A never looks at what only the file has, B at what only the model has: exchanged", says="On your input for A, A gives what the right version gives; it exposes B")
wrong("15.2", "C's shapes exposes D too", answer("expose", LOADERS | {"C": ({"w": (4, 3)}, {"w": (3, 4)})}), truth="C's shapes (4, 3) and (3, 4) expose D as well")
wrong("15.2", "D with as many axes", answer("expose", LOADERS | {"D": ({"w": (4, 3)}, {"w": (2, 6)})}), truth="D's shapes (4, 3) and (2, 6) expose C as well")
wrong("15.2", "C exposes nothing", answer("expose", LOADERS | {"C": ({"w": (4, 3)}, {"w": (4,)})}), truth="C's shapes have another number of axes, so C sees it", says="On your input for C, C gives what the right version gives")
wrong("15.2", "D exposes nothing", answer("expose", LOADERS | {"D": ({"w": (4, 3)}, {"w": (11,)})}), truth="D's shapes have another number of numbers, so D sees it", says="On your input for D, D gives what the right version gives")
wrong("15.2", "E fits", answer("expose", LOADERS | {"E": ({"w": (4,)}, {"w": (4,)})}), truth="E's file fits the model: nothing is wrong, so nothing is exposed")
wrong("15.2", "E with another shape", answer("expose", LOADERS | {"E": ({"w": (4,)}, {"v": (5,)})}), truth="E's shapes differ, so E sees it: it exposes nothing")
wrong("15.2", "C forgotten", answer("expose", {k: v for k, v in LOADERS.items() if k != "C"}), truth="there is no entry for C", says="the keys are ['A', 'B', 'D', 'E'], expected ['A', 'B', 'C', 'D', 'E']")
wrong("15.2", "model and file exchanged in A", answer("expose", LOADERS | {"A": ({"w": (2,), "b": (3,)}, {"w": (2,)})}), truth="A's model has more than the file: expected and found are exchanged", says="On your input for A, A gives what the right version gives; it exposes B")
right("15.2", "E by another order", """
def expose():
    model = {"norm": (8,), "proj": (8, 4)}
    file = {"proj": (8, 4), "norm": (8,)}
    return {
        "A": (dict(model), {**model, "post": (8,)}),
        "B": (dict(model), {"norm": (8,)}),
        "C": (model, model | {"proj": (8, 5)}),
        "D": (model, model | {"proj": (32,)}),
        "E": (model, file),
    }
""")

# --- 15.3 -------------------------------------------------------------------------------------------------------------

CAPPED = """
def capped_attention(query, key, value, allowed, scale, cap=None):
    scores = query @ key.transpose(2, 3) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return weights @ value
"""
change("15.3", "masked before the cap", CAPPED, ("    if cap is not None:\n        scores = cap * torch.tanh(scores / cap)\n    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)\n", "    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)\n    if cap is not None:\n        scores = cap * torch.tanh(scores / cap)\n"), truth="the mask comes before the cap, which bends the hidden scores back to -cap")
change("15.3", "tanh of the score", CAPPED, ("torch.tanh(scores / cap)", "torch.tanh(scores)"), truth="the score is not divided by cap inside tanh")
change("15.3", "not times cap", CAPPED, ("cap * torch.tanh(scores / cap)", "torch.tanh(scores / cap)"), truth="tanh is not multiplied by cap")
change("15.3", "clamped", CAPPED, ("cap * torch.tanh(scores / cap)", "scores.clamp(-cap, cap)"), truth="the scores are clamped instead of bent by tanh")
change("15.3", "no scale", CAPPED, (" * scale", ""), truth="scale is not used")
change("15.3", "divided by scale", CAPPED, (" * scale", " / scale"), truth="divides by scale instead of multiplying")
change("15.3", "root of d", CAPPED, (" * scale", " / query.shape[-1] ** 0.5"), truth="divides by the root of d instead of using scale")
change("15.3", "scale after the cap", CAPPED, (" * scale", ""), ("    scores = scores.masked_fill", "    scores = scores * scale\n    scores = scores.masked_fill"), truth="the scale comes after the cap")
change("15.3", "mask inverted", CAPPED, ("~allowed", "allowed"), truth="hides what is allowed and shows what is not")
change("15.3", "softmax over queries", CAPPED, ("softmax(dim=-1,", "softmax(dim=-2,"), truth="the softmax is over the queries, not over the keys")
change("15.3", "no cap", CAPPED, ("    if cap is not None:\n        scores = cap * torch.tanh(scores / cap)\n", ""), truth="the cap is not used")
change("15.3", "cap of 50 always", CAPPED, ("cap * torch.tanh(scores / cap)", "50.0 * torch.tanh(scores / 50.0)"), truth="the cap is always 50")
change("15.3", "None fails", CAPPED, ("    if cap is not None:\n        scores = cap * torch.tanh(scores / cap)\n", "    scores = cap * torch.tanh(scores / cap)\n"), truth="cap=None is not allowed for")
change("15.3", "mask by 0", CAPPED, ("torch.finfo(scores.dtype).min", "0.0"), truth="hidden scores become 0, which the softmax does not make 0")
change("15.3", "mask not low enough", CAPPED, ("torch.finfo(scores.dtype).min", "-10.0"), truth="hidden scores become -10: their weight is not exactly 0")
change("15.3", "zeroed after the softmax", CAPPED, ("    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)\n", ""), ("    return weights", "    weights = weights.masked_fill(~allowed, 0.0)\n    return weights"), truth="hidden weights are set to 0 after the softmax, so rows do not sum to 1")
change("15.3", "cap after the softmax", CAPPED, ("    if cap is not None:\n        scores = cap * torch.tanh(scores / cap)\n", ""), ("    return weights", "    if cap is not None:\n        weights = cap * torch.tanh(weights / cap)\n    return weights"), truth="the weights are bent, not the scores")
change("15.3", "result in float32", CAPPED, (".to(query.dtype)\n    return weights @ value", "\n    return weights @ value.float()"), truth="the result is float32, not the query's dtype")
change("15.3", "-1e9 in half precision", CAPPED, ("torch.finfo(scores.dtype).min", "-1e9"), truth="-1e9 does not fit into float16", says="a number that this dtype cannot hold")
right("15.3", "loop over heads, -inf, own softmax", """
def capped_attention(query, key, value, allowed, scale, cap=None):
    heads = []
    for h in range(query.shape[1]):
        s = torch.einsum("bld,btd->blt", query[:, h].float(), key[:, h].float()) * scale
        s = s if cap is None else (s / cap).tanh() * cap
        s = torch.where(allowed[:, 0], s, -torch.inf)
        e = (s - s.amax(dim=-1, keepdim=True)).exp()
        heads.append(torch.bmm(e / e.sum(-1, keepdim=True), value[:, h].float()))
    return torch.stack(heads, dim=1).to(query.dtype)
""")
right("15.3", "scaled query, additive mask", """
def capped_attention(query, key, value, allowed, scale, cap=None):
    scores = torch.matmul(query * scale, key.mT).float()
    if cap:
        scores = torch.tanh(scores / cap) * cap
    scores = scores + torch.zeros(allowed.shape).masked_fill(allowed.logical_not(), float("-inf"))
    return torch.matmul(torch.softmax(scores, -1).type_as(query), value)
""")

# --- 15.4 -------------------------------------------------------------------------------------------------------------

MEND = """
class Mended(nn.Module):
    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.self_attn = Gemma2Attention(config, layer_idx)
        self.mlp = GemmaMLP(config)
        self.input_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.pre_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_feedforward_layernorm = GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), position_embeddings, attention_mask)
        hidden_states = hidden_states + self.post_attention_layernorm(attended)
        x = self.pre_feedforward_layernorm(hidden_states)
        return hidden_states + self.post_feedforward_layernorm(self.mlp(x))
"""
change("15.4", "norm of the sum", MEND, ("hidden_states + self.post_attention_layernorm(attended)", "self.post_attention_layernorm(hidden_states + attended)"), truth="post_attention_layernorm is taken of the sum, not of what attention gives")
change("15.4", "stream overwritten", MEND, ("        x = self.pre_feedforward_layernorm(hidden_states)", "        x = hidden_states = self.pre_feedforward_layernorm(hidden_states)"), truth="the norm before the MLP overwrites the stream, so it is the residual of the second sum")
change("15.4", "feedforward norms exchanged", MEND, ("self.pre_feedforward_layernorm(hidden_states)", "self.POST(hidden_states)"), ("self.post_feedforward_layernorm(self.mlp", "self.pre_feedforward_layernorm(self.mlp"), ("self.POST", "self.post_feedforward_layernorm"), truth="pre_feedforward_layernorm stands after the MLP and post_feedforward_layernorm before it")
change("15.4", "no norm after attention", MEND, ("self.post_attention_layernorm(attended)", "attended"), truth="what attention gives is added without post_attention_layernorm")
change("15.4", "no norm after the MLP", MEND, ("self.post_feedforward_layernorm(self.mlp(x))", "self.mlp(x)"), truth="what the MLP gives is added without post_feedforward_layernorm")
change("15.4", "no norm before the MLP", MEND, ("x = self.pre_feedforward_layernorm(hidden_states)", "x = hidden_states"), truth="the MLP reads the stream without pre_feedforward_layernorm")
change("15.4", "second norm of the sum", MEND, ("hidden_states + self.post_feedforward_layernorm(self.mlp(x))", "self.post_feedforward_layernorm(hidden_states + self.mlp(x))"), truth="post_feedforward_layernorm is taken of the sum")
change("15.4", "as in Gemma 1", MEND, ("self.post_attention_layernorm(attended)", "attended"), ("self.pre_feedforward_layernorm(hidden_states)", "self.post_attention_layernorm(hidden_states)"), truth="post_attention_layernorm stands before the MLP, as in Gemma 1, and nothing after attention")
change("15.4", "attention reads the raw stream", MEND, ("self.self_attn(self.input_layernorm(hidden_states)", "self.self_attn(hidden_states"), truth="input_layernorm is not used")
change("15.4", "mask not passed on", MEND, ("position_embeddings, attention_mask)\n        hidden", "position_embeddings)\n        hidden"), truth="attention_mask is not passed on")
change("15.4", "second sum from the input", MEND, ("        attended, _", "        start = hidden_states\n        attended, _"), ("return hidden_states + self.post", "return start + self.post"), truth="the second sum starts from the layer's input: attention's part is lost")
right("15.4", "a helper for both halves", """
class Mended(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            self.add_module(norm + "_layernorm", GemmaRMSNorm(config.hidden_size, eps=config.rms_norm_eps))
        self.mlp, self.self_attn = GemmaMLP(config), Gemma2Attention(config, layer_idx)

    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        attend = lambda x: self.self_attn(x, position_embeddings, attention_mask)[0]
        stream = hidden_states
        for before, part, after in [
            (self.input_layernorm, attend, self.post_attention_layernorm),
            (self.pre_feedforward_layernorm, self.mlp, self.post_feedforward_layernorm),
        ]:
            stream = stream + after(part(before(stream)))
        return stream
""")

# --- 15.5 -------------------------------------------------------------------------------------------------------------

WINDOW = """
def window_mask(is_answer, window):
    L = is_answer.shape[1]
    place = torch.arange(L)
    back = place[:, None] - place
    band = (back >= 0) & (back < window) & is_answer[:, :, None]
    block = ~is_answer[:, :, None] & ~is_answer[:, None, :]
    return band | block
"""
change("15.5", "one too many", WINDOW, ("back < window", "back <= window"), truth="the window holds window + 1 tokens: itself is not counted")
change("15.5", "one too few", WINDOW, ("back < window", "back < window - 1"), truth="the window holds window - 1 tokens")
change("15.5", "window in the prompt", WINDOW, ("block = ~is_answer[:, :, None] & ~is_answer[:, None, :]", "block = ~is_answer[:, :, None] & ~is_answer[:, None, :] & (back.abs() < window)"), truth="the prompt has a window too, but all of it sees each other")
change("15.5", "prompt always seen", WINDOW, ("block = ~is_answer[:, :, None] & ~is_answer[:, None, :]", "block = (~is_answer[:, None, :]).expand(-1, L, -1)"), truth="the answer sees picture and prompt however far back")
change("15.5", "sees the future", WINDOW, ("(back >= 0) & (back < window)", "(back.abs() < window)"), truth="a token of the answer sees those after it")
change("15.5", "no window", WINDOW, (" & (back < window)", ""), truth="the window is not used")
change("15.5", "prompt sees the answer", WINDOW, ("block = ~is_answer[:, :, None] & ~is_answer[:, None, :]", "block = (~is_answer[:, :, None]).expand(-1, -1, L)"), truth="picture and prompt see the answer")
change("15.5", "rows and columns exchanged", WINDOW, ("    return band | block", "    return (band | block).transpose(1, 2)"), truth="rows and columns are exchanged")
change("15.5", "causal prompt", WINDOW, ("block = ~is_answer[:, :, None] & ~is_answer[:, None, :]", "block = ~is_answer[:, :, None] & ~is_answer[:, None, :] & (back >= 0)"), truth="the prompt is causal: it does not see what comes after")
change("15.5", "inverted", WINDOW, ("    return band | block", "    return ~(band | block)"), truth="True where a token must not be seen")
change("15.5", "numbers instead of bool", WINDOW, ("    return band | block", "    return torch.zeros(is_answer.shape[0], L, L).masked_fill(~(band | block), -torch.inf)"), truth="returns 0 and -inf instead of bool")
change("15.5", "block missing", WINDOW, ("    return band | block", "    return band"), truth="the prompt sees nothing")
change("15.5", "first row for all", WINDOW, ("    L = is_answer.shape[1]\n", "    L = is_answer.shape[1]\n    is_answer = is_answer[:1].expand_as(is_answer)\n"), truth="the first row's answer is used for every row of the batch")
change("15.5", "prompt not counted in the window", WINDOW, ("& is_answer[:, :, None]\n", "& is_answer[:, :, None] & is_answer[:, None, :]\n"), truth="the window counts tokens of the answer only; the prompt is hidden from it")
right("15.5", "three loops", """
def window_mask(is_answer, window):
    B, L = is_answer.shape
    seen = torch.zeros(B, L, L, dtype=torch.bool)
    for b in range(B):
        n = int((~is_answer[b]).sum())
        seen[b, :n, :n] = True
        for i in range(n, L):
            seen[b, i, max(0, i - window + 1) : i + 1] = True
    return seen
""")
right("15.5", "tril and triu", """
def window_mask(is_answer, window):
    L = is_answer.size(1)
    band = torch.ones(L, L, dtype=torch.bool).tril().triu(1 - window)
    prompt = is_answer.logical_not()
    return torch.where(is_answer.unsqueeze(2), band.unsqueeze(0), prompt.unsqueeze(2) & prompt.unsqueeze(1))
""")

# --- 15.6 -------------------------------------------------------------------------------------------------------------

LOAD = """
def load(folder):
    config = PaliGemmaConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(config)
    weights = {}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():
            if not name.endswith("lm_head.weight"):
                weights[to_published(name)] = file.get_tensor(name)
    model.load_state_dict(weights, assign=True)
    return model.eval()
"""
change("15.6", "not strict", LOAD, ("assign=True", "assign=True, strict=False"), truth="strict=False: missing and unexpected tensors pass")
change("15.6", "not assigned", LOAD, (", assign=True", ""), truth="without assign the tensors are copied into a model on meta: nothing arrives", says="on the meta device, expected on the cpu the parameters are still without memory")
change("15.6", "training mode", LOAD, ("return model.eval()", "return model"), truth="the model is in training mode")
change("15.6", "names as they are", LOAD, ("weights[to_published(name)]", "weights[name]"), truth="names are not brought to the published layout")
change("15.6", "head not skipped", LOAD, ('            if not name.endswith("lm_head.weight"):\n                weights', "            weights"), truth="the head is not skipped: it is unexpected")
change("15.6", "float32", LOAD, ("file.get_tensor(name)", "file.get_tensor(name).float()"), truth="the weights are made float32 instead of staying in the file's dtype")
change("15.6", "model float at the end", LOAD, ("model.eval()", "model.float().eval()"), truth="the whole model is made float32 at the end")
change("15.6", "built with memory", LOAD, ('    with torch.device("meta"):\n        model = PaliGemmaForConditionalGeneration(config)', "    model = PaliGemmaForConditionalGeneration(config)"), truth="the model is built with memory, not on the meta device")
change("15.6", "copied into float32", LOAD, ('    with torch.device("meta"):\n        model = PaliGemmaForConditionalGeneration(config)', "    model = PaliGemmaForConditionalGeneration(config)"), (", assign=True", ""), truth="the model is built with memory and the weights are copied into it")
change("15.6", "unexpected ones skipped", LOAD, ("    model.load_state_dict(weights, assign=True)", "    weights = {name: tensor for name, tensor in weights.items() if name in model.state_dict()}\n    model.load_state_dict(weights, assign=True)"), truth="tensors that the model does not have are skipped silently")
change("15.6", "copied by clone", LOAD, ("file.get_tensor(name)", "file.get_tensor(name).clone()"), truth="the tensors are cloned: each is copied")
change("15.6", "missing ones filled", LOAD, ("    model.load_state_dict(weights, assign=True)", "    for name, tensor in model.state_dict().items():\n        if name not in weights:\n            weights[name] = torch.zeros(tensor.shape)\n    model.load_state_dict(weights, assign=True)"), truth="missing tensors are filled with zeros silently")
change("15.6", "to_empty", LOAD, (", assign=True", ""), ("    weights = {}", "    model = model.to_empty(device=\"cpu\")\n    weights = {}"), truth="to_empty gives the model memory of its own, and the weights are copied")
right("15.6", "load_file", """
def load(folder):
    from safetensors.torch import load_file

    with open(folder / "config.json", encoding="utf-8") as file:
        config = PaliGemmaConfig.from_dict(json.load(file))
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(config)
    tensors = load_file(str(folder / "model.safetensors"))
    tensors = {to_published(name): tensor for name, tensor in tensors.items() if "lm_head" not in name}
    model.load_state_dict(tensors, strict=True, assign=True)
    model.train(False)
    return model
""")
right("15.6", "parameters set one by one", """
def load(folder):
    config = PaliGemmaConfig.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(config)
    waiting = dict(model.named_parameters())
    with safe_open(str(folder / "model.safetensors"), framework="pt", device="cpu") as file:
        for raw in file.keys():
            if raw.split(".")[-2:] == ["lm_head", "weight"]:
                continue
            name, tensor = to_published(raw), file.get_tensor(raw)
            if name not in waiting:
                raise ValueError(f"{name} is not a tensor of the model")
            if waiting.pop(name).shape != tensor.shape:
                raise ValueError(f"{name} has another shape")
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, nn.Parameter(tensor))
    if waiting:
        raise ValueError(f"missing: {sorted(waiting)}")
    return model.eval()
""")
