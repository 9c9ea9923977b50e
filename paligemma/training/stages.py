"""The four stages of the recipe, each from the options of its command to the files that it leaves.

Beyer et al. 2024, "PaliGemma", section 3.2.
"""

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..checkpoint import load_pretrained, save_pretrained
from ..files import write_atomically, write_files_atomically
from ..segmentation import load_mask_tokenizer
from ..world.contrastive import TinySiglip
from ..world.pictures import Pictures, mask_codes
from ..world.scenes import caption, draw, make_scene
from ..world.tiny_model import IMAGE_SIZE, build_model, build_processor
from .adapt import at_resolution, redraw_collapsed_embeddings
from .finetune import finetune
from .loop import open_folder, train, write_log
from .losses import ModelWithPatchHeads, PatchHeads, Stage0, held_out_loss, mixture_loss, stage0_loss
from .optimizers import Schedule
from .parallel import is_main_process

# How often each task is asked. Those that took longest to learn come more often.
TASK_WEIGHTS = {
    "caption": 1.6,
    "colour": 0.7,
    "shape": 0.7,
    "size": 0.7,
    "how many": 0.9,
    "is there": 1.5,
    "where": 1.0,
    "relation": 0.6,
    "detect": 2.2,
    "segment": 2.2,
    "detect pair": 0.0,
}
# With --quick: words only, no boxes and masks. Half the time a step, and nothing to learn but what things are.
QUICK_WEIGHTS = {"caption": 1.6, "colour": 1.0, "shape": 1.0, "size": 0.7, "how many": 0.7}

# Options that do not change what comes out: a run may go on under others.
FREE_OPTIONS = {"run", "out", "cache", "device", "save_every", "stop_at", "encoder"}


def deciding_options(args: Namespace) -> dict:
    """The options of the command that decide the result, as JSON has them."""
    return {name: value for name, value in sorted(vars(args).items()) if name not in FREE_OPTIONS}


# -------------------------------------------------------------------------------------- stage 0: the image encoder


def run_stage0(args: Namespace, device: torch.device) -> None:
    """The image encoder alone: leaves tiny-siglip/ with the two towers and, where there were labels, their heads."""
    out = open_folder(args.out)
    processor = build_processor()
    config = build_model(processor).config.vision_config
    stage = Stage0(
        config,
        len(processor.tokenizer),
        args.seed,
        with_heads=args.patch_labels > 0,
        random_positions=args.positions == "random",
    ).to(device)
    pictures = Pictures(args.pictures, folder=args.cache)
    steps = args.steps or (700 if args.quick else 1400)
    schedule = Schedule(cycles=((steps, 1.0),), seed=args.seed, save_every=args.save_every)

    def export() -> None:
        save_towers(stage.towers, out / "tiny-siglip")
        if stage.heads is not None:
            save_weights(stage.heads, out / "tiny-siglip/heads.safetensors")

    batch_loss = stage0_loss(stage, processor.tokenizer, pictures, args.per_step, args.seed, device, args.patch_labels)
    options = deciding_options(args)
    train(stage, batch_loss, schedule, out, lambda cycle: export(), args.stop_at, options)
    if args.stop_at and is_main_process():
        export()


def save_towers(towers: TinySiglip, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the two towers as config.json and model.safetensors, both or neither."""
    vision = asdict(towers.vision_tower.config)
    vision.pop("attention")
    config = {"model_type": "tiny-siglip", "vocab_size": towers.token_embedding.num_embeddings, "vision_config": vision}
    with write_files_atomically(folder) as fresh:
        weights = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in towers.state_dict().items()}
        save_file(weights, fresh / "model.safetensors", metadata={"format": "pt"})
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_weights(module: nn.Module, path: Path) -> None:
    with write_atomically(path) as partial:
        save_file({name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}, partial)


def load_weights(module: nn.Module, path: Path, prefix: str = "") -> None:
    """Fill a module from those weights of a file whose names begin with `prefix`.

    Raises FileNotFoundError when the file is missing, ValueError when it holds another module's weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `python -m paligemma.training stage0` first, or name the file")
    try:
        weights = {
            name.removeprefix(prefix): tensor.float()
            for name, tensor in load_file(path).items()
            if name.startswith(prefix)
        }
        module.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path} does not hold the weights of {type(module).__name__}: {reason}") from error


# ------------------------------------------------------------------------------ stages 1 and 2: everything together


def run_stage1(args: Namespace, device: torch.device) -> None:
    """All of it together, nothing frozen: leaves a model at the end of each cycle, cycle1/ and so on."""
    out = open_folder(args.out)
    if args.start:  # go on from an earlier cycle with a new schedule
        model, processor = load_pretrained(args.start)
    else:
        processor = build_processor()
        model = build_model(processor, args.seed)
        load_weights(model.vision_tower, Path(args.encoder) / "model.safetensors", "vision_tower.")
    cycles = args.cycles or (((args.steps, 1.0),) if args.steps else None)
    cycles = cycles or (((700, 1.0),) if args.quick else ((1100, 1.0), (3200, 0.6)))
    schedule = Schedule(cycles=cycles, seed=args.seed, save_every=args.save_every)
    weights = {**(QUICK_WEIGHTS if args.quick else TASK_WEIGHTS), **args.weights}
    heads = None
    if args.patch_labels:
        heads = PatchHeads(model.config.vision_config.hidden_size)
        load_weights(heads, Path(args.heads or Path(args.encoder) / "heads.safetensors"))
    stage = ModelWithPatchHeads(model, heads).to(device)
    easy_steps = 0 if args.start else 250
    train_mixture(args, device, stage, processor, schedule, weights, out, IMAGE_SIZE, easy_steps, args.patch_labels)


def run_stage2(args: Namespace, device: torch.device) -> None:
    """The same at a higher resolution: leaves cycle1/."""
    out = open_folder(args.out)
    model, processor = load_pretrained(args.start)
    model = at_resolution(model, args.image_size)
    processor.image_size, processor.image_seq_length = args.image_size, model.config.vision_config.num_image_tokens
    schedule = Schedule(cycles=((args.steps, 0.3),), seed=args.seed, save_every=args.save_every)
    stage = ModelWithPatchHeads(model, heads=None).to(device)
    train_mixture(args, device, stage, processor, schedule, {**TASK_WEIGHTS, **args.weights}, out, args.image_size)


def train_mixture(
    args: Namespace,
    device: torch.device,
    stage: ModelWithPatchHeads,
    processor,
    schedule: Schedule,
    weights: dict[str, float],
    out: Path,
    size: int,
    easy_steps: int = 0,
    heads_weight: float = 0.0,
) -> None:
    """Train on all tasks at once, and write the model at the end of each cycle, or where --stop-at stops it."""
    if not any(weights.values()):
        raise ValueError("--weights leaves no task with a weight above 0, expected one or more")
    tokenizer = processor.tokenizer
    pictures = Pictures(args.pictures, size=size, folder=args.cache)
    codes = mask_codes(load_mask_tokenizer(args.masks))
    batch_loss = mixture_loss(
        stage, tokenizer, pictures, args.per_step, 3, args.seed, codes, weights, device, easy_steps, heads_weight
    )
    held_out = held_out_loss(stage.model, tokenizer, size, codes, weights, device)

    def export(name: str) -> None:
        if stage.heads is not None:
            save_weights(stage.heads, out / "heads.safetensors")
        save_pretrained(stage.model, processor, out / name)

    train(
        stage,
        batch_loss,
        schedule,
        out,
        on_cycle=lambda cycle: export(f"cycle{cycle}"),
        stop_at=args.stop_at,
        options=deciding_options(args),
        held_out=held_out,
    )
    if args.stop_at and is_main_process():
        export(f"step{args.stop_at}")


# ---------------------------------------------------------------------------------------------- stage 3: a new task


def run_stage3(args: Namespace, device: torch.device) -> None:
    """Korean captions of scenes with one or two objects, and half as many English ones so that these are not lost."""
    out = open_folder(args.out)
    model, processor = load_pretrained(args.start, device=device)
    new = [make_scene(500_000 + i, max_things=2) for i in range(args.examples)]
    old = [make_scene(600_000 + i, max_things=2) for i in range(args.examples // 2)]
    prompts = ["caption ko"] * len(new) + ["caption en"] * len(old)
    answers = [caption(scene, "ko") for scene in new] + [caption(scene) for scene in old]
    redraw_collapsed_embeddings(model, processor.tokenizer, prompts + answers, seed=args.seed)
    pictures = [draw(scene) for scene in new + old]
    losses = finetune(model, processor, pictures, prompts, answers, steps=args.steps, seed=args.seed)
    if not is_main_process():
        return
    save_pretrained(model, processor, out / "model")
    write_log(out / "log.jsonl", [{"step": i + 1, "loss": loss} for i, loss in enumerate(losses)])
