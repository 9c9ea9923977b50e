"""Call what a learner wrote under the learner's own names for things.

The package and the video differ in signatures: position_ids or ready cosines, masks that are added, configurations with
more names, results in tuples or dictionaries. A value is passed by what it is (its role, named as in the video), to the
parameter whose name says so.
"""

import inspect
from dataclasses import fields, is_dataclass

import torch

ROLES = {  # the video's name of a value, and what others call it
    "config": ("cfg", "configuration", "conf", "args"),
    "layer_idx": ("layer_index", "layer_id", "idx", "layer", "layer_num"),
    "dim": ("hidden_size", "head_dim", "d", "embed_dim", "size_", "normalized_shape"),
    "eps": ("epsilon", "rms_norm_eps"),
    "base": ("theta", "rope_theta"),
    "max_position_embeddings": ("max_seq_len", "max_len", "max_positions"),
    "hidden_states": ("x", "inputs", "input", "hidden_state", "states", "hidden", "image_features", "features",
                      "inputs_embeds", "input_embeds", "input_embs", "input_embeddings", "embeddings", "pixel_values",
                      "pixels", "tensor", "kv", "hidden_feature", "img", "image_feature"),
    "attention_mask": ("mask", "attn_mask", "causal_mask"),
    "position_ids": ("pos_ids", "positions", "position_id", "pos"),
    "position_embeddings": ("rope", "cos_sin", "freqs"),
    "kv_cache": ("cache", "past_key_value", "past_key_values", "kvcache"),
    "q": ("query", "query_states", "queries", "xq"),
    "k": ("key", "key_states", "keys", "xk"),
    "v": ("value", "value_states", "values"),
    "cos": ("cosine", "cos_emb"),
    "sin": ("sine", "sin_emb"),
    "n_rep": ("num_rep", "n_repeats", "repeats", "num_key_value_groups", "n"),
    "text": ("prompts", "texts", "prompt"),
    "input_ids": ("ids", "tokens", "token_ids"),
    "image": ("img", "picture", "array", "x"),
    "images": ("imgs", "pictures", "image"),
    "size": ("shape", "image_size", "new_size"),
    "resample": ("interpolation", "resampling"),
    "scale": ("factor", "rescale_factor"),
    "rescale_factor": ("scale", "factor"),
    "image_mean": ("mean",),
    "image_std": ("std",),
    "mean": ("image_mean",),
    "std": ("image_std",),
    "prefix_prompt": ("prompt", "text", "prefix"),
    "bos_token": ("bos",),
    "image_seq_len": ("image_seq_length", "num_image_tokens", "image_sequence_length", "seq_len", "image_token_len"),
    "image_token": ("image_tok", "img_token"),
    "probs": ("probabilities", "logits"),
    "p": ("top_p", "threshold"),
}  # fmt: skip


def arguments(function, given: dict) -> dict:
    """{the function's parameter: value} for values by role. `given` is in the video's order.

    Required parameters whose name is unknown get what is left over, in order.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return dict(given)
    kinds = inspect.Parameter
    named = [one for one in parameters if one.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    chosen, left = {}, dict(given)
    for exact in (True, False):
        for parameter in named:
            if parameter.name in chosen:
                continue
            role = next((key for key in left if is_called(parameter.name, key, exact)), None)
            if role is not None:
                chosen[parameter.name] = left.pop(role)
    for parameter in named:
        if parameter.name not in chosen and parameter.default is kinds.empty and left:
            chosen[parameter.name] = left.pop(next(iter(left)))
    return chosen


def is_called(name: str, role: str, exact: bool) -> bool:
    if exact:
        return name == role
    name = name.strip("_").lower()
    return any({name, role} <= {main, *others} for main, others in ROLES.items())


def call(function, given: dict):
    """Call a function, or a module's forward, with values by role."""
    target = function.forward if isinstance(function, torch.nn.Module) else function
    chosen = arguments(target, given)
    positional = [one.name for one in inspect.signature(target).parameters.values() if one.kind is one.POSITIONAL_ONLY]
    if positional or (not chosen and given):
        return function(*given.values())
    return function(**chosen)


def roles(function, args: tuple, kwargs: dict, known: tuple[str, ...]) -> dict:
    """The other way round: a call of the learner's function as values by role. Raises TypeError as the call would."""
    bound = inspect.signature(function).bind(*args, **kwargs).arguments
    found = {}
    for name, value in bound.items():
        if name in ("self", "kwargs", "args"):
            continue
        free = [key for key in known if key not in found]
        role = name if name in free else next((key for key in free if is_called(name, key, False)), None)
        if role is not None:
            found[role] = value
    return found


def first_tensor(result):
    """The tensor in a result: itself, the first of several values, the logits of a dictionary or an object."""
    if isinstance(result, torch.Tensor) or result is None:
        return result
    if isinstance(result, dict):
        return result.get("logits", next((v for v in result.values() if isinstance(v, torch.Tensor)), None))
    if isinstance(result, tuple | list):
        return first_tensor(result[0]) if result else None
    for name in ("logits", "last_hidden_state", "hidden_states"):
        if hasattr(result, name):
            return getattr(result, name)
    return result


# --- configurations ---------------------------------------------------------------------------------------------------

VISION = {
    "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 3, "num_channels": 3,
    "image_size": 15, "patch_size": 5, "layer_norm_eps": 0.01, "attention_dropout": 0.0, "num_image_tokens": 9,
}  # fmt: skip
TEXT = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 28, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64, "rms_norm_eps": 0.01,
    "rope_theta": 500.0, "attention_bias": False, "attention_dropout": 0.0, "pad_token_id": 0,
}  # fmt: skip
WHOLE = {
    "ignore_index": -100, "image_token_index": 48, "vocab_size": 50, "projection_dim": 16, "hidden_size": 16,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip
EXTRA = {"attention": "eager", "hidden_activation": "gelu_pytorch_tanh", "model_type": "gemma"}  # the package's names


class Configuration:
    """Stands in for the learner's configuration where that is wrong or not written yet."""


class Sizes(dict):
    """The values of a configuration, before it is made: {name: value}."""


def vision(**other) -> Sizes:
    return Sizes({**VISION, **other})


def text(**other) -> Sizes:
    return Sizes({**TEXT, **other})


def whole(vision_sizes=None, text_sizes=None, **other) -> Sizes:
    sizes = Sizes({**WHOLE, **other})
    sizes["vision_config"], sizes["text_config"] = vision_sizes or vision(), text_sizes or text()
    return sizes


def configuration(sizes: Sizes, kinds: dict[str, type] | None = None):
    """An object with these values under their published names; the learner's own class where it is among `kinds`.

    Names that the learner's class does not have are added, so that other parts find them.
    """
    kinds = kinds or {}
    values = dict(sizes)
    name = "SiglipVisionConfig"
    if "vision_config" in sizes:
        name = "PaliGemmaConfig"
    elif "vocab_size" in sizes:
        name = "GemmaConfig"
    kind = kinds.get(name)
    if name == "PaliGemmaConfig":
        parts = configuration(sizes["vision_config"], kinds), configuration(sizes["text_config"], kinds)
        parts[0].projection_dim = sizes["projection_dim"]
        parts[1].num_image_tokens = sizes["vision_config"]["num_image_tokens"]
    if kind is not None:
        try:
            made = construct(kind, values)
        except Exception:
            made = None  # its own check has told; the others go on
        if made is not None:
            return completed(made, values)
    if name == "PaliGemmaConfig":
        values["vision_config"], values["text_config"] = parts
    return completed(Configuration(), values)


def completed(made, values: dict):
    more = {**EXTRA, "embed_dim": values["hidden_size"]} if "hidden_size" in values else EXTRA
    for key, value in {**more, **values}.items():
        if not hasattr(made, key):
            try:
                setattr(made, key, value)
            except Exception:
                pass  # a frozen dataclass: it keeps what it has
    for key in ("vision_config", "text_config"):
        inner = getattr(made, key, None)
        if isinstance(inner, dict):
            setattr(made, key, values[key])
        elif inner is not None and isinstance(values.get(key), Sizes):
            completed(inner, values[key])
    return made


def construct(kind: type, values: dict):
    """The learner's configuration from these values, as from a config.json: through its from_dict, if it has one."""
    if hasattr(kind, "from_dict"):
        return kind.from_dict(plain(values))
    return kind(**accepted(kind, values))


def plain(values: dict) -> dict:
    """With dictionaries for the parts."""
    return {key: dict(value) if isinstance(value, Sizes) else value for key, value in values.items()}


def accepted(kind: type, values: dict) -> dict:
    """Those of the values that the class takes; plain dictionaries for the parts, as in a config.json."""
    if is_dataclass(kind):
        names = {one.name for one in fields(kind) if one.init}
    else:
        parameters = inspect.signature(kind).parameters
        if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            names = set(values)
        else:
            names = set(parameters)
    values = plain(values)
    if isinstance(values.get("text_config"), dict):
        values["text_config"].pop("pad_token_id", None)  # the video passes it on by itself
    return {key: value for key, value in values.items() if key in names}
