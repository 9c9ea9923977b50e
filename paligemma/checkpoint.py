"""Open and write checkpoints: folders in Hugging Face format, and names on the Hugging Face hub.

The tensors are mapped from the file into memory, not read into a second copy: what is not used is not loaded, and a
checkpoint needs the memory of its weights once. Only safetensors are read: unlike pickled files, they cannot run code.
"""

import errno
import json
import math
import os
import reprlib
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from .config_checks import check_choice, check_object, inside, is_number
from .files import write_files_atomically
from .modeling_gemma import PaliGemmaConfig, PaliGemmaForConditionalGeneration
from .modeling_gemma2 import Gemma2Config  # noqa: F401 - so that PaliGemmaConfig knows the decoder of PaliGemma 2
from .processing_paligemma import (
    IMAGE_TOKEN,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    LOCATION_TOKENS,
    SEGMENTATION_TOKENS,
    PaliGemmaProcessor,
)

# Four layouts of tensor names are in use; each prefix on the left becomes the one on the right, the names that Google
# published under and this package uses. The first that fits counts.
PREFIXES = (
    ("vision_tower.vision_model.", "vision_tower.vision_model."),  # published files
    ("language_model.model.", "language_model.model."),
    ("multi_modal_projector.", "multi_modal_projector."),
    ("vision_tower.", "vision_tower.vision_model."),  # written by transformers 5
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),  # transformers 4.52 and later, in memory
    ("model.vision_tower.", "vision_tower.vision_model."),  # transformers 5, in memory
    ("model.language_model.", "language_model.model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
HEAD_NAMES = ("lm_head.weight", "language_model.lm_head.weight")  # the embedding again, where a file has it at all
EMBEDDING = "language_model.model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"
# What other programs leave in the names of tensors, and what to do about it.
FOREIGN_NAMES = {
    "lora_": "these are LoRA adapters: load them with peft, then save what merge_and_unload() returns",
    "base_layer.": "a model with LoRA adapters was saved: load it with peft, then save what merge_and_unload() returns",
    "base_model.": "a model inside peft was saved: save what its merge_and_unload() returns",
    "_orig_mod.": "a model inside torch.compile was saved: save model._orig_mod, or use this package's save_pretrained",
    "module.": "a model inside DataParallel or DistributedDataParallel was saved: save model.module",
}


def canonical_name(name: str) -> str:
    """The name of a tensor in the published layout, from any of the four in use; unknown names stay as they are."""
    for prefix, published in PREFIXES:
        if name.startswith(prefix):
            return published + name[len(prefix) :]
    return name


def load_pretrained(
    name_or_path: str | os.PathLike,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    attention: str = "sdpa",
    progress: bool = False,
    revision: str | None = None,
) -> tuple[PaliGemmaForConditionalGeneration, PaliGemmaProcessor]:
    """Open a PaliGemma or PaliGemma 2: a folder, or a name on the hub such as "google/paligemma-3b-mix-224".

    `dtype` (torch.bfloat16 or "bfloat16") is the one in the file unless given; `attention` is "sdpa" (fast) or "eager"
    (readable, returns weights). The model comes in evaluation mode. On the CPU and in the file's own dtype its weights
    are the mapped file itself (changing them changes the copy in memory, never the file).

    `revision` names a branch, a tag or a commit of a model on the hub. The main branch of a PaliGemma 1 holds float32;
    revision="bfloat16" is half the download (https://huggingface.co/blog/paligemma).

    Raises FileNotFoundError for what is not there, ValueError for what is not a PaliGemma, does not fit its
    configuration (each wrong tensor is named) or would be processed in another way than here, and for a device that
    this computer has not; ConnectionError or PermissionError when the hub cannot be reached or wants a licence
    accepted first.
    """
    dtype, device = check_dtype(dtype), check_device(device)
    folder = find_folder(name_or_path, revision)
    config = read_config(folder, attention)
    model = load_weights(config, folder, dtype, device, progress)
    return model.eval(), load_processor(config, folder)


def check_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """`dtype` as torch has it; "auto" and None mean the file's own. Raises ValueError for what no weights can have."""
    found = None if dtype == "auto" else getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if found is None or (isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize > 1):
        return found
    raise ValueError(f"dtype is {dtype!r}, expected float32, bfloat16, float16 or float64 (of torch, or its name)")


def check_device(device: str | torch.device) -> torch.device:
    """`device` as torch has it. Raises ValueError for one that is not there."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # what torch says depends on it
        raise ValueError(
            f"this computer (or this PyTorch) has no device {str(device)!r}, expected cpu, or cuda or mps where they "
            "are: leave it out"
        ) from error


def read_config(folder: Path, attention: str = "sdpa") -> PaliGemmaConfig:
    """The configuration in a checkpoint folder. Raises as `load_pretrained` does, with the file and the key."""
    path = folder / "config.json"
    if not path.exists() and (folder / "adapter_config.json").exists():
        raise FileNotFoundError(
            f"{folder} holds a PEFT adapter and no model: open the model that it was trained on, put the adapter on it "
            "with peft, and save what merge_and_unload() returns"
        )
    values = read_json(path)
    check_choice("attention", attention, ("sdpa", "eager"))
    with inside(str(path)):
        return PaliGemmaConfig.from_dict(values, attention)


class WithoutInitialisation(TorchFunctionMode):
    """Inside `with WithoutInitialisation():` new modules draw no weights: those of the file come next.

    On the "meta" device drawing them costs nothing but an import of torch's compiler, two seconds long.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


def expected_shapes(config: PaliGemmaConfig) -> tuple[PaliGemmaForConditionalGeneration, dict[str, tuple[int, ...]]]:
    """The model of `config` without memory (on torch's "meta" device), and the shape of each of its tensors."""
    with torch.device("meta"), WithoutInitialisation():
        model = PaliGemmaForConditionalGeneration(config)
    return model, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def load_weights(
    config: PaliGemmaConfig,
    folder: Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> PaliGemmaForConditionalGeneration:
    """The model of `config` with the weights in `folder`; strict. Raises as `load_pretrained` does."""
    stored = list_tensors(folder)
    with inside(str(folder / "config.json")):
        check_sizes(config, stored)
    model, expected = expected_shapes(config)
    names = {canonical_name(tensor.name) for tensor in stored}
    weights, head, surprises = {}, None, []
    for tensor in tqdm(stored, desc="loading", unit=" tensors", disable=not progress):
        name = canonical_name(tensor.name)
        if tensor.name in HEAD_NAMES and EMBEDDING in names:
            head = tensor.read()
            continue
        if tensor.name in HEAD_NAMES:  # tied weights have two names, and some programs keep only this one
            name = EMBEDDING
        if name not in expected:
            surprises.append(f"unexpected tensor {tensor.name}")
        elif name in weights:
            surprises.append(f"tensor {tensor.name} stands twice, under two names")
        elif tensor.shape != expected[name]:
            surprises.append(f"{tensor.name} has shape {list(tensor.shape)}, expected {list(expected[name])}")
            weights[name] = None
        else:
            value = tensor.read()
            if not value.is_floating_point():
                surprises.append(f"{tensor.name} holds {value.dtype} (quantised weights?), expected floating-point")
            dtype = dtype or value.dtype
            weights[name] = value.to(device=device, dtype=dtype)
    surprises += [f"missing tensor {name}" for name in expected if name not in weights]
    if surprises:
        raise ValueError(
            f"the weights in {folder} do not fit its config.json: {some_of(surprises)}. "
            f"{advice([tensor.name for tensor in stored])}"
        )
    if head is not None and not torch.equal(head.to(device=device, dtype=dtype), weights[EMBEDDING]):
        raise ValueError(
            f"the weights in {folder} have an output head of their own; PaliGemma's is its embedding table (tied)"
        )
    model.load_state_dict(weights, assign=True)
    return model.to(device)  # the few tensors that are not in the file


def check_sizes(config: PaliGemmaConfig, stored: list["StoredTensor"]) -> None:
    """Raise ValueError for a configuration that needs far more than the files hold, before anything of it is built.

    Smaller differences are found when tensor is compared with tensor, and named one by one.
    """
    text, vision = config.text_config, config.vision_config
    held = sum(torch.Size(tensor.shape).numel() for tensor in stored)
    for name, part in (("text_config", text), ("vision_config", vision)):
        if part.num_hidden_layers > max(len(stored), 100):
            raise ValueError(
                f"{name}: num_hidden_layers is {part.num_hidden_layers}, but the weight files hold "
                f"{len(stored)} tensors in all"
            )
    matrices = {  # the largest of each kind, as the keys that make it
        "text_config: vocab_size x hidden_size": (text.vocab_size, text.hidden_size),
        "text_config: intermediate_size x hidden_size": (text.intermediate_size, text.hidden_size),
        "text_config: num_attention_heads x head_dim x hidden_size": (
            text.num_attention_heads, text.head_dim, text.hidden_size
        ),
        "vision_config: (image_size / patch_size)^2 x hidden_size": (vision.num_image_tokens, vision.hidden_size),
        "vision_config: num_channels x patch_size^2 x hidden_size": (
            vision.num_channels, vision.patch_size, vision.patch_size, vision.hidden_size
        ),
        "vision_config: intermediate_size x hidden_size": (vision.intermediate_size, vision.hidden_size),
        "vision_config: hidden_size^2": (vision.hidden_size, vision.hidden_size),
    }  # fmt: skip
    for what, sizes in matrices.items():
        if math.prod(sizes) > max(4 * held, 2**24):
            raise ValueError(
                f"{what} is {' x '.join(map(str, sizes))}, far more numbers than the weight files hold in all ({held})"
            )


def some_of(items: Collection[str], most: int = 8) -> str:
    """The first few of a list that may be long, for a message."""
    shown = "; ".join(list(items)[:most])
    return f"{shown} (and {len(items) - most} more)" if len(items) > most else shown


def advice(names: Collection[str]) -> str:
    """What to do about tensors of these names, which do not fit."""
    for part, what in FOREIGN_NAMES.items():
        if any(name.startswith(part) or f".{part}" in name for name in names):
            return f"The names hold {part!r}: {what}"
    return "The files may be of another model or from two downloads: fetch the folder again"


def load_processor(config: PaliGemmaConfig, folder: Path) -> PaliGemmaProcessor:
    """The processor that fits the model: its tokenizer from `folder`, the rest from the configuration.

    Raises ValueError where the files of the folder ask for another processing than this package's.
    """
    check_image_settings(config, folder)
    tokenizer = load_tokenizer(config, folder)
    vision = config.vision_config
    return PaliGemmaProcessor(tokenizer, vision.num_image_tokens, vision.image_size)


def check_image_settings(config: PaliGemmaConfig, folder: Path) -> None:
    """Raise ValueError unless the folder's files prepare pictures as `process_images` does, where they say how."""
    size = config.vision_config.image_size
    expected = {
        "size": ({"height": size, "width": size},),
        "image_mean": (list(IMAGENET_STANDARD_MEAN),),
        "image_std": (list(IMAGENET_STANDARD_STD),),
        "resample": (3,),  # bicubic
        "do_resize": (True,),
        "do_rescale": (True,),
        "do_normalize": (True,),
        "image_seq_length": (config.vision_config.num_image_tokens,),
    }
    for name in ("preprocessor_config.json", "processor_config.json"):
        if not (folder / name).exists():
            continue
        values = read_json(folder / name)
        with inside(str(folder / name)):
            if name == "processor_config.json":  # where transformers 5 writes them, one level down
                values = values.get("image_processor") or {}
                check_object("image_processor", values)
            for key, choices in expected.items():
                if values.get(key) is not None:
                    check_choice(key, values[key], choices)
            factor = 1 / 255 if values.get("rescale_factor") is None else values["rescale_factor"]
            if not is_number(factor) or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
                raise ValueError(f"rescale_factor is {reprlib.repr(factor)}, expected 1 / 255")


def load_tokenizer(config: PaliGemmaConfig, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, from transformers. Raises ValueError unless it is one of Gemma's kind, undamaged."""
    from transformers import AutoTokenizer  # 1.3 s of import, and only loading needs it

    settings_path, path = folder / "tokenizer_config.json", folder / "tokenizer.json"
    if not path.exists() and not (folder / "tokenizer.model").exists():
        raise FileNotFoundError(
            f"{folder} holds no tokenizer that can be opened: it needs tokenizer.json and tokenizer_config.json beside "
            "the weights"
        )
    settings = read_json(settings_path)
    if path.exists():
        with inside(str(path)):
            check_merges(read_json(path))
    with inside(str(settings_path)):
        classes = ("GemmaTokenizer", "GemmaTokenizerFast", "TokenizersBackend", "PreTrainedTokenizerFast")
        check_choice("tokenizer_class", settings.get("tokenizer_class", classes[0]), classes)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of every type: wrong values fail wherever they are first used
        raise ValueError(
            f"{path} and {settings_path.name} make no tokenizer ({first_line(error)}): fetch them again"
        ) from error
    with inside(str(settings_path)):
        limit, least = tokenizer.model_max_length, config.vision_config.num_image_tokens + 3
        if not is_number(limit) or not least <= limit < math.inf or limit != int(limit):
            raise ValueError(f"model_max_length is {reprlib.repr(limit)}, expected a whole number of {least} or more")
    with inside(str(path)):
        check_tokenizer(tokenizer)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(tokenizer, key) != getattr(config, key):
            raise ValueError(
                f"{folder / 'config.json'}: {key} is {getattr(config, key)}, the tokenizer beside it says "
                f"{getattr(tokenizer, key)}: the two files are of different models"
            )
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if image_token_id != config.image_token_index:
        raise ValueError(
            f"the tokenizer in {folder} gives <image> the id {image_token_id}, config.json says "
            f"{config.image_token_index}: the two files are of different models"
        )
    largest = max(id for token, id in tokenizer.get_vocab().items() if token != IMAGE_TOKEN)
    if largest >= config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has ids up to {largest}, the model's table {config.text_config.vocab_size} "
            "rows: the two files are of different models"
        )
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless the parts of a Gemma tokenizer are there and do what they do in Gemma's."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = getattr(backend, "model", None)
    if not hasattr(model, "byte_fallback"):
        raise ValueError(f"it is a {type(model).__name__}, expected byte-pair encoding (BPE), as Gemma's")
    if not model.byte_fallback or model.dropout:
        raise ValueError("model.byte_fallback is off or model.dropout is on, expected the opposite, as in Gemma's")
    if backend.normalizer is None or backend.normalizer.normalize_str("a b") != "a\N{LOWER ONE EIGHTH BLOCK}b":
        raise ValueError("its normalizer is missing or another: it must write a space as \N{LOWER ONE EIGHTH BLOCK}")
    pieces = ["a", "\N{LOWER ONE EIGHTH BLOCK}b", "<0xC3>", "<0xA9>"]
    if backend.decoder is None or backend.decoder.decode(pieces) != "a b\N{LATIN SMALL LETTER E WITH ACUTE}":
        raise ValueError("its decoder is missing or another: it must write spaces and put bytes together again")
    vocabulary = tokenizer.get_vocab()
    needed = [IMAGE_TOKEN, *LOCATION_TOKENS, *SEGMENTATION_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    missing = [token for token in needed if token not in vocabulary]
    missing += [name for name in ("bos_token", "eos_token", "pad_token") if getattr(tokenizer, name) not in vocabulary]
    if missing:
        raise ValueError(f"it lacks {some_of(missing)}")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise ValueError(f"its {len(vocabulary)} tokens do not have the ids from 0 to {len(vocabulary) - 1}, each once")
    for family in (LOCATION_TOKENS, SEGMENTATION_TOKENS):
        if vocabulary[family[-1]] - vocabulary[family[0]] != len(family) - 1:
            raise ValueError(f"the ids of {family[0]} to {family[-1]} are not in a row")
    for added in tokenizer.added_tokens_decoder.values():
        if added.lstrip or added.rstrip or added.single_word:
            raise ValueError(f"added_tokens: {added.content} takes spaces with it or wants them, expected neither")
        if added.special and added.content in LOCATION_TOKENS + SEGMENTATION_TOKENS:
            raise ValueError(f"added_tokens: {added.content} is special, and would be left out of answers")
    for text in (IMAGE_TOKEN, LOCATION_TOKENS[0], SEGMENTATION_TOKENS[0], tokenizer.bos_token, tokenizer.eos_token):
        if tokenizer(text, add_special_tokens=False)["input_ids"] != [vocabulary[text]]:
            raise ValueError(f"added_tokens: {text} is not read as one token")
    text = "caption en\n a  b, \N{LATIN SMALL LETTER E WITH ACUTE}\N{CAT}?"
    if tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) != text:
        raise ValueError("the tokens of a text do not give the text again: its pre_tokenizer is another, or damaged")


def check_merges(values: dict) -> None:
    """Raise ValueError for the contents of a tokenizer.json whose merges do not make the pieces of its vocabulary."""
    check_object("model", values.get("model"))
    vocabulary, merges = values["model"].get("vocab"), values["model"].get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise ValueError("model.vocab and model.merges are missing or of another type, expected those of a BPE model")
    if not isinstance(values.get("added_tokens"), list):
        raise ValueError(f"added_tokens is {reprlib.repr(values.get('added_tokens'))}, expected a list")
    added = {str(token.get("content")) for token in values["added_tokens"] if isinstance(token, dict)}
    made = {merge.replace(" ", "", 1) if isinstance(merge, str) else "".join(map(str, merge)) for merge in merges}
    longer = [piece for piece in vocabulary if len(piece) > 1 and piece not in added and not piece.startswith("<0x")]
    unmade = [piece for piece in longer if piece not in made]
    if 10 * len(unmade) > len(longer):  # a few that can only be written by id are usual
        raise ValueError(f"model.merges make {len(longer) - len(unmade)} of the {len(longer)} pieces of model.vocab")


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def find_folder(name_or_path: str | os.PathLike, revision: str | None = None) -> Path:
    """The folder itself, or the place on disk where the hub's files (of that revision) are kept after a download."""
    folder = Path(name_or_path).expanduser()
    if revision is not None and (not isinstance(revision, str) or not revision):
        raise ValueError(f"revision is {revision!r}, expected the name of a branch, a tag or a commit on the hub")
    if folder.is_dir() and name_or_path != "":
        if revision is not None:
            raise ValueError(
                f"revision is {revision!r}, but {folder} is a folder on this disk, expected a name on the hub: leave "
                "revision out, or give the name"
            )
        return folder
    if folder.is_file():
        raise FileNotFoundError(f"{folder} is a file: give the folder that holds config.json and the weights")
    name = str(name_or_path)
    if not isinstance(name_or_path, str) or name.count("/") != 1 or name[0] in "./~" or name[-1] == "/":
        raise FileNotFoundError(
            f"there is no folder {name or '(the name is empty)'}: give a checkpoint folder, or a hub name such as "
            "google/paligemma-3b-mix-224"
        )
    return download(name, revision)


def download(name: str, revision: str | None = None) -> Path:
    """Fetch a checkpoint from the hub, or find it where an earlier download left it."""
    import httpx  # what huggingface_hub fetches with; the two take 0.3 s to import, and only downloads need them
    from huggingface_hub import errors, snapshot_download  # 0.3 s of import, as said above

    patterns = ["*.json", "*.safetensors", "tokenizer.model"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{name} asks you to accept its licence: open https://huggingface.co/{name} in a browser, accept it, then "
            "run `hf auth login` here once"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{name} has no revision {revision!r} on the hub: look at the branches under Files on "
            f"https://huggingface.co/{name}, or leave revision out for its main branch"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise FileNotFoundError(
            f"there is no folder {name} here and no such model on the hub (or it is private and you are not logged in: "
            "run `hf auth login`)"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):  # the disk's fault, not the network's
            raise OSError(error.errno, f"{name} could not be stored on this disk ({error.strerror})") from error
        raise _unreachable(name) from error
    except httpx.HTTPError as error:
        raise _unreachable(name) from error


def _unreachable(name: str) -> ConnectionError:
    return ConnectionError(
        f"there is no folder {name} here, it was not downloaded before, and the hub cannot be reached: check the path, "
        "or the network connection"
    )


def read_json(path: Path) -> dict:
    """A JSON file as a dict. Raises FileNotFoundError or ValueError with the file's name."""
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}: is it a checkpoint folder?")
    if not path.is_file():
        raise ValueError(f"{path} is no file, expected JSON: fetch the folder again")
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once_each)
    except (ValueError, RecursionError) as error:  # what is wrong with the syntax, the encoding or the depth
        raise ValueError(f"{path} is not valid JSON ({first_line(error)}): fetch the file again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected an object with keys")
    return values


def once_each(pairs: list[tuple]) -> dict:
    """Keys and values as a dict. JSON allows a key twice, Python keeps the last: which one is meant, nobody knows."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in values if keys.count(key) > 1)
        raise ValueError(f"the key {reprlib.repr(twice)} stands twice")
    return values


class StoredTensor(NamedTuple):
    """A tensor in a file: its header has been read, its numbers are mapped into memory by `read`."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def list_tensors(folder: Path) -> list[StoredTensor]:
    """Every tensor in the folder's weight files."""
    tensors = []
    for path in weight_files(folder):
        try:
            file = safe_open(path, framework="pt", device="cpu")
            for name in file.keys():  # noqa: SIM118 - a safe_open is no dict
                shape = tuple(file.get_slice(name).get_shape())
                tensors.append(StoredTensor(name, shape, lambda file=file, name=name: file.get_tensor(name)))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or cut off ({first_line(error)}): fetch the file again") from error
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """One file, or those that an index names. Where both are there, the single file counts, as in transformers."""
    single, index = folder / "model.safetensors", folder / INDEX
    if single.exists():
        return [single]
    if not index.exists():
        shards = sorted(path.name for path in folder.glob("model-*-of-*.safetensors"))
        if shards:
            raise FileNotFoundError(
                f"{folder} holds {some_of(shards, 2)}, but not {INDEX}, which names all the files: the download is "
                "incomplete, fetch it again"
            )
        raise FileNotFoundError(
            f"{folder} holds no model.safetensors (nor {INDEX}): the download is incomplete, or the weights are in "
            "another format; only safetensors are read, convert .bin or .npz files with transformers first"
        )
    weight_map = read_json(index).get("weight_map")
    with inside(str(index)):
        check_object("weight_map", weight_map)
        for tensor, shard in weight_map.items():
            if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard or not shard.strip("."):
                raise ValueError(
                    f"weight_map gives {reprlib.repr(tensor)} the file {reprlib.repr(shard)}, expected the name of a "
                    "file in this folder"
                )
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing or not shards:
        raise FileNotFoundError(
            f"{folder} lacks {some_of(missing) or 'every shard'}, named in {index.name}: the download is incomplete, "
            "fetch it again"
        )
    return [folder / shard for shard in shards]


def config_to_dict(config: PaliGemmaConfig, dtype: torch.dtype) -> dict:
    """The contents of config.json, as transformers writes them."""
    values = asdict(config)
    text, vision = values["text_config"], values["vision_config"]
    del text["attention"], vision["attention"]  # how to run it, not what it is
    text |= {"hidden_activation": "gelu_pytorch_tanh", "num_image_tokens": vision["num_image_tokens"]}
    text["rope_parameters"] = {"rope_theta": text["rope_theta"], "rope_type": "default"}
    vision |= {"model_type": "siglip_vision_model", "projection_dim": config.projection_dim, "vision_use_head": False}
    return values | {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "hidden_size": config.text_config.hidden_size,
        "vocab_size": config.text_config.vocab_size,
        "tie_word_embeddings": True,
        "dtype": str(dtype).removeprefix("torch."),
    }


def processor_to_dict(processor: PaliGemmaProcessor) -> dict:
    """The contents of preprocessor_config.json, as transformers reads them."""
    return {
        "processor_class": "PaliGemmaProcessor",
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": processor.image_seq_length,
        "size": {"height": processor.image_size, "width": processor.image_size},
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_STANDARD_MEAN),
        "image_std": list(IMAGENET_STANDARD_STD),
    }


def save_pretrained(
    model: PaliGemmaForConditionalGeneration,
    processor: PaliGemmaProcessor,
    folder: str | os.PathLike,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write a folder that `load_pretrained` and transformers open alike; returns it.

    What torch.compile, DataParallel and DistributedDataParallel wrap around a model is taken off. Everything is
    written beside the folder first and then moved in, so that a full disk or a crash leaves what was there before.

    Raises OSError, with the reason, when the folder cannot be written, and ValueError, before anything is written,
    for a model whose weights `load_pretrained` would refuse (with LoRA adapters not merged, for example).
    """
    from huggingface_hub import split_torch_state_dict_into_shards  # 0.3 s of import, and only saving needs it

    model, state = weights_to_save(model)
    plan = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    config = model.config
    files = {
        "config.json": config_to_dict(config, model.dtype),
        "preprocessor_config.json": processor_to_dict(processor),
        "generation_config.json": {
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
            "pad_token_id": config.pad_token_id,
        },
    }
    if plan.is_sharded:
        files[INDEX] = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    # An earlier checkpoint's weights in other files, and its settings where transformers 5 keeps them, would go first.
    outdated = ("model.safetensors", INDEX, "model-*-of-*.safetensors", "processor_config.json")
    with write_files_atomically(folder, outdated) as fresh:
        for filename, names in plan.filename_to_tensors.items():
            try:
                save_file({name: state[name] for name in names}, fresh / filename, metadata={"format": "pt"})
            except SafetensorError as error:  # its word for a full disk
                raise OSError(first_line(error)) from error
        processor.tokenizer.save_pretrained(fresh)
        for filename, values in files.items():
            text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
            (fresh / filename).write_text(text, encoding="utf-8")
    return Path(folder)


def weights_to_save(model: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The model without wrappers, and its weights under the published names. Raises ValueError when they do not fit."""
    while hasattr(model, "_orig_mod") or hasattr(model, "module"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    if not isinstance(getattr(model, "config", None), PaliGemmaConfig):
        raise ValueError(f"the model is a {type(model).__name__}, expected a PaliGemmaForConditionalGeneration")
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in model.state_dict().items()}
    _, expected = expected_shapes(model.config)
    wrong = [f"unexpected tensor {name}" for name in state if name not in expected]
    wrong += [f"missing tensor {name}" for name in expected if name not in state]
    wrong += [
        f"{name} has shape {list(state[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if wrong:
        raise ValueError(
            f"nothing was saved, the model does not fit its config: {some_of(wrong)}. {advice(list(state))}"
        )
    if any(hasattr(tensor, "full_tensor") for tensor in state.values()):
        raise ValueError(
            "nothing was saved, the weights are spread over several processes: gather them first, with "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict"
        )
    return model, {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
