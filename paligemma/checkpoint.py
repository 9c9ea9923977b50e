"""Open and write checkpoints: folders in Hugging Face format, and names on the Hugging Face hub.

The tensors are mapped from the file into memory, not read into a second copy: what is not used is not loaded, and a
checkpoint needs the memory of its weights once. Only safetensors are read: unlike pickled files, they cannot run code.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode
from tqdm.auto import tqdm

from .modeling_gemma import PaliGemmaConfig, PaliGemmaForConditionalGeneration
from .processing_paligemma import PaliGemmaProcessor

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


def canonical_name(name: str) -> str:
    """The name of a tensor in the published layout, from any of the four in use; unknown names stay as they are."""
    for prefix, published in PREFIXES:
        if name.startswith(prefix):
            return published + name[len(prefix) :]
    return name


def load_pretrained(
    name_or_path: str | os.PathLike,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    attention: str = "sdpa",
    progress: bool = False,
) -> tuple[PaliGemmaForConditionalGeneration, PaliGemmaProcessor]:
    """Open a PaliGemma or PaliGemma 2: a folder, or a name on the hub such as "google/paligemma-3b-mix-224".

    `dtype` is the one in the file unless given; `attention` is "sdpa" (fast) or "eager" (readable, returns weights).
    The model comes in evaluation mode. On the CPU and in the file's own dtype its weights are the mapped file itself
    (changing them changes the copy in memory, never the file).

    Raises FileNotFoundError for what is not there, ValueError for what is not a PaliGemma or does not fit its
    configuration (each wrong tensor is named), and ConnectionError or PermissionError when the hub cannot be reached
    or wants a licence accepted first.
    """
    folder = find_folder(name_or_path)
    config = PaliGemmaConfig.from_dict(read_json(folder / "config.json"), attention=attention)
    model = load_weights(config, folder, dtype, device, progress)
    return model.eval(), load_processor(config, folder)


class WithoutInitialisation(TorchFunctionMode):
    """Inside `with WithoutInitialisation():` new modules draw no weights: those of the file come next.

    On the "meta" device drawing them costs nothing but an import of torch's compiler, two seconds long.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


def load_weights(config, folder: Path, dtype=None, device="cpu", progress=False) -> PaliGemmaForConditionalGeneration:
    """The model of `config` with the weights in `folder`; strict. Raises as `load_pretrained` does."""
    with torch.device("meta"), WithoutInitialisation():  # shapes without memory
        model = PaliGemmaForConditionalGeneration(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights, head, surprises = {}, None, []
    for name, tensor in tqdm(list_tensors(folder), desc="loading", unit=" tensors", disable=not progress):
        if name in HEAD_NAMES:
            head = tensor()
            continue
        canonical = canonical_name(name)
        if canonical not in expected:
            surprises.append(f"unexpected tensor {name}")
        elif canonical in weights:
            surprises.append(f"tensor {name} stands twice, under two names")
        else:
            value = tensor()
            if tuple(value.shape) != expected[canonical]:
                surprises.append(f"{name} has shape {list(value.shape)}, expected {list(expected[canonical])}")
            if not value.is_floating_point():
                surprises.append(f"{name} holds {value.dtype} (quantised weights?), expected floating-point numbers")
            dtype = dtype or value.dtype
            weights[canonical] = value.to(device=device, dtype=dtype)
    surprises += [f"missing tensor {name}" for name in expected if name not in weights]
    if surprises:
        more = f" (and {len(surprises) - 8} more)" if len(surprises) > 8 else ""
        raise ValueError(
            f"the weights in {folder} do not fit its config.json: {'; '.join(surprises[:8])}{more}. The files may be "
            "of another model or from two downloads: fetch the folder again"
        )
    if head is not None and not torch.equal(head.to(device=device, dtype=dtype), weights[EMBEDDING]):
        raise ValueError(
            f"the weights in {folder} have an output head of their own; PaliGemma's is its embedding table (tied)"
        )
    model.load_state_dict(weights, assign=True)
    return model.to(device)  # the few tensors that are not in the file


def load_processor(config: PaliGemmaConfig, folder: Path) -> PaliGemmaProcessor:
    """The processor that fits the model: its tokenizer from `folder`, the rest from the configuration."""
    from transformers import AutoTokenizer  # slow to import, and only needed here

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{folder} holds no tokenizer that can be opened ({str(error).splitlines()[0]}): it needs tokenizer.json "
            "and tokenizer_config.json beside the weights"
        ) from error
    vision = config.vision_config
    processor = PaliGemmaProcessor(tokenizer, vision.num_image_tokens, vision.image_size)
    if processor.image_token_id != config.image_token_index:
        raise ValueError(
            f"the tokenizer in {folder} gives <image> the id {processor.image_token_id}, config.json says "
            f"{config.image_token_index}: the two files are of different models"
        )
    return processor


def find_folder(name_or_path: str | os.PathLike) -> Path:
    """The folder itself, or the place on disk where the hub's files are kept after a download."""
    folder = Path(name_or_path).expanduser()
    if folder.is_dir() and name_or_path != "":
        return folder
    if folder.is_file():
        raise FileNotFoundError(f"{folder} is a file: give the folder that holds config.json and the weights")
    name = str(name_or_path)
    if not isinstance(name_or_path, str) or name.count("/") != 1 or name[0] in "./~" or name[-1] == "/":
        raise FileNotFoundError(
            f"there is no folder {name or '(the name is empty)'}: give a checkpoint folder, or a hub name such as "
            "google/paligemma-3b-mix-224"
        )
    return download(name)


def download(name: str) -> Path:
    """Fetch a checkpoint from the hub, or find it where an earlier download left it."""
    import httpx  # what huggingface_hub fetches with
    from huggingface_hub import errors, snapshot_download

    patterns = ["*.json", "*.safetensors", "tokenizer.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{name} asks you to accept its licence: open https://huggingface.co/{name} in a browser, accept it, then "
            "run `hf auth login` here once"
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
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path.parent} holds no {path.name}: is it a checkpoint folder?") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): fetch the file again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected an object with keys")
    return values


def list_tensors(folder: Path) -> list:
    """Every tensor in the folder's weight files as (name, a function that maps it into memory)."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        shards = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
        missing = [shard for shard in shards if not (folder / shard).exists()]
        if missing or not shards:
            raise FileNotFoundError(
                f"{folder} lacks {', '.join(missing) or 'every shard'}, named in {index.name}: the download is "
                "incomplete, fetch it again"
            )
    elif (folder / "model.safetensors").exists():
        shards = ["model.safetensors"]
    else:
        raise FileNotFoundError(
            f"{folder} holds no model.safetensors (nor {index.name}): only safetensors are read; convert .bin or .npz "
            "files with transformers first"
        )
    tensors = []
    for shard in shards:
        try:
            file = safe_open(folder / shard, framework="pt", device="cpu")
        except SafetensorError as error:
            raise ValueError(f"{folder / shard} is damaged or cut off ({error}): fetch the file again") from error
        tensors += [(name, lambda file=file, name=name: file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118
    return tensors


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
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def save_pretrained(
    model: PaliGemmaForConditionalGeneration,
    processor: PaliGemmaProcessor,
    folder: str | os.PathLike,
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write a folder that `load_pretrained` and transformers open alike; returns it.

    Everything is written beside the folder first and then moved in, so that a full disk or a crash leaves what was
    there before. Raises OSError, with the reason, when the folder cannot be written.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    folder = Path(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
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
        files["model.safetensors.index.json"] = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    with replaced_folder(folder) as fresh:
        for filename, names in plan.filename_to_tensors.items():
            save_file({name: state[name] for name in names}, fresh / filename, metadata={"format": "pt"})
        processor.tokenizer.save_pretrained(fresh)
        for filename, values in files.items():
            text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
            (fresh / filename).write_text(text, encoding="utf-8")
    return folder


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder to write to; at the end its files replace those in `folder`, after an error nothing does.

    Weight files of an earlier checkpoint that the new one has no use for are removed; other files stay.
    """
    fresh = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        yield fresh
        folder.mkdir(exist_ok=True)
        for path in sorted(fresh.iterdir()):
            os.replace(path, folder / path.name)
            written = folder / path.name
            written.chmod(0o644)
        _remove_stale_weights(folder)
    except OSError as error:
        raise OSError(f"the checkpoint could not be written to {folder}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise OSError(f"the checkpoint could not be written to {folder}: {error}") from error
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)


def _remove_stale_weights(folder: Path) -> None:
    """Delete shards of an earlier checkpoint, which the new one does not name."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.exists() and single.exists():  # one of the two is from before: the older
        older = min(index, single, key=lambda path: path.stat().st_mtime_ns)
        older.unlink()
    kept = set(read_json(index)["weight_map"].values()) if index.exists() else {single.name}
    for path in folder.glob("model-*-of-*.safetensors"):
        if path.name not in kept:
            path.unlink()
