"""PaliGemma's training recipe in miniature: one command a stage.

    python -m paligemma.training stage0       the image encoder alone: SigLIP's sigmoid loss, and labels per patch
    python -m paligemma.training stage1       all of it together, nothing frozen, every task mixed
    python -m paligemma.training stage2       the same at a higher resolution
    python -m paligemma.training stage3       transfer to a new task, Korean captions, from a few hundred examples

A stage writes into its folder under runs/: log.jsonl (one line every few steps), state.pt (everything needed to
go on; written every minute or so) and, at the end of each cycle of the learning rate, a finished model. Run the
same command again after an interruption and it goes on exactly where it stopped: every batch is a function of
the seed and the step alone. `torchrun --nproc-per-node 2 -m paligemma.training stage1` shares each batch among
processes; their gradients are added up, so the result is that of one process.

Recipe: Beyer et al. 2024, "PaliGemma", section 3.2 (stages, prefix-LM, loss on the suffix). Optimisers: Muon
(Jordan et al. 2024) for the matrices, AdamW for the rest.
"""

import argparse
import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from ..checkpoint import load_pretrained, save_pretrained
from ..modeling_gemma import PaliGemmaForConditionalGeneration, apply_rotary_pos_emb
from ..segmentation import load_mask_tokenizer
from ..world.contrastive import PatchHeads, TinySiglip, patch_labels, sigmoid_loss, text_ids
from ..world.pictures import Pictures, collate, draw_questions
from ..world.scenes import SHAPES, caption, shape_mask
from ..world.tiny_model import build_model, build_processor, initialise, soft_location_targets
from .muon import Muon

SHIPPED = "assets/tiny-paligemma"

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


# ------------------------------------------------------------------------------------------------ the loop


@dataclass
class Schedule:
    """How a stage is trained. `cycles` are (steps, factor): the rates rise, fall to nothing, and start again."""

    cycles: tuple[tuple[int, float], ...]
    muon_lr: float = 5e-3
    adam_lr: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    save_every: float = 60.0  # seconds between two state.pt
    log_every: int = 10  # steps between two lines of log.jsonl

    @property
    def steps(self) -> int:
        return sum(steps for steps, _ in self.cycles)

    def factor(self, step: int) -> float:
        """What the learning rates are multiplied by at this step: linear warm-up, then a cosine to zero."""
        for steps, scale in self.cycles:
            if step < steps:
                warm = min(1.0, (step + 1) / max(1, min(self.warmup, steps // 5)))
                return scale * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            step -= steps
        return 0.0

    def ends_cycle(self, step: int) -> int | None:
        """The number (from 1) of the cycle whose last step this is, or None."""
        end = 0
        for number, (steps, _) in enumerate(self.cycles, start=1):
            end += steps
            if step == end - 1:
                return number
        return None


def make_optimizers(model: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers; AdamW for embeddings, heads, norms, biases and the patch kernel.

    Muon makes all directions of a matrix's update equally strong; an embedding's rows, of which a step touches
    a few, are not a matrix in that sense.
    """
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim == 2 and "embed" not in name and not name.startswith("heads.")
            (matrices if is_matrix else others).append(parameter)
    return [
        Muon(matrices, lr=schedule.muon_lr, weight_decay=schedule.weight_decay),
        torch.optim.AdamW(others, lr=schedule.adam_lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]


def process_share(count: int) -> slice:
    """Which of `count` things in a batch belong to this process."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return slice(rank * count // world, (rank + 1) * count // world)


def add_up_gradients(model: nn.Module) -> None:
    """Sum the gradients of all processes. Each computed its share of the one loss, so the sum is the gradient."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def shard(model: PaliGemmaForConditionalGeneration) -> None:
    """Spread the weights over the processes of torchrun, in place: for models that are too large for one device.

    Each process keeps its part of every weight. A layer's weights are put together for the moment it runs, and
    their gradients are averaged over the processes ("fully sharded", Zhao et al. 2023, "PyTorch FSDP"). So give each
    process its own examples, and take an optimiser that works number by number, such as AdamW: Muon needs whole
    matrices. `torch.distributed.checkpoint.state_dict.get_model_state_dict` puts the weights together to be saved.
    Raises RuntimeError where torch.distributed is not initialised.
    """
    from torch.distributed.device_mesh import init_device_mesh  # half a second, for a few
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized():
        raise RuntimeError(
            "shard needs several processes: call torch.distributed.init_process_group first, and "
            "start the script with torchrun."
        )
    mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
    layers = [*model.vision_tower.vision_model.encoder.layers, *model.language_model.model.layers]
    for part in (*layers, model):  # the model last: it takes what is in no layer
        fully_shard(part, mesh=mesh)


def add_up(values: dict[str, float]) -> dict[str, float]:
    """Sum numbers of all processes, key by key."""
    if not dist.is_initialized():
        return values
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, values)
    total = defaultdict(float)
    for one in everyone:
        for key, value in one.items():
            total[key] += value
    return dict(total)


def save_state(path: Path, state: dict) -> None:
    """Write a training state under a temporary name and rename it: what is there stays whole until then.

    Raises OSError, with what to do, when the disk is full or the folder cannot be written to.
    """
    partial = path.with_name(path.name + ".tmp")
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        partial.unlink(missing_ok=True)
        last = f"the last good one, {path}, is untouched" if path.exists() else "no earlier one exists"
        raise OSError(
            f"Could not write the training state to {path} ({error}); {last}. Make room or choose another "
            "folder with --out, then run the same command again: it goes on from the last good state."
        ) from error


def train(
    model: nn.Module,
    batch_loss: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    schedule: Schedule,
    folder: str | Path,
    on_cycle: Callable[[int], None] = lambda number: None,
    stop_at: int | None = None,
) -> list[dict]:
    """Run the steps of a stage that are not done yet; returns the log's lines, those of earlier runs included.

    `batch_loss(step)` gives this process's share of the loss at `step` and sums to log; names ending in `_n`
    count what was summed under the name before it. `on_cycle(number)` is called at the end of each cycle.
    `stop_at` ends the run before that step, as an interruption would. Raises ValueError when the folder holds
    a run with other settings, FloatingPointError when the loss is no longer a number.
    """
    folder = Path(folder)
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    optimizers = make_optimizers(model, schedule)
    settings = json.loads(json.dumps(asdict(schedule)))  # as JSON keeps them: lists for tuples
    del settings["save_every"]  # changes nothing in the result
    first, log = 0, []
    state_path, log_path = folder / "state.pt", folder / "log.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"Cannot write to {folder} ({error}); choose another folder with --out.") from error
    if state_path.exists():
        state = torch.load(state_path, map_location="cpu", weights_only=True)
        if state["settings"] != settings:
            raise ValueError(
                f"{folder} holds a run with other settings ({state['settings']}, now {settings}). "
                "Give the same settings, another --out, or remove the folder."
            )
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]
        if log_path.exists():
            log = [json.loads(line) for line in log_path.read_text(encoding="utf-8").splitlines()]
            log = [line for line in log if line["step"] <= first]  # later lines will be written again
    if is_main:
        write_log(log_path, log)

    def save(step: int) -> None:
        if is_main:
            save_state(
                state_path,
                {
                    "step": step,
                    "model": model.state_dict(),
                    "settings": settings,
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                },
            )

    seconds = log[-1]["seconds"] if log else 0.0
    sums, since_save = defaultdict(float), time.monotonic()
    last = schedule.steps if stop_at is None else min(stop_at, schedule.steps)
    bar = tqdm(
        range(first, last), initial=first, total=schedule.steps, disable=not is_main, unit=" steps", mininterval=5.0
    )
    model.train()
    for step in bar:
        began = time.monotonic()
        for optimizer, rate in zip(optimizers, (schedule.muon_lr, schedule.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule.factor(step)
            optimizer.zero_grad(set_to_none=True)
        loss, numbers = batch_loss(step)
        loss.backward()
        add_up_gradients(model)
        norm = nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        numbers = add_up({"loss": loss.item(), **numbers})
        if not math.isfinite(numbers["loss"]):
            raise FloatingPointError(
                f"The loss became {numbers['loss']} at step {step}. Lower the learning "
                f"rates; the last good state is {state_path}."
            )
        for optimizer in optimizers:
            optimizer.step()
        seconds += time.monotonic() - began

        for key, value in numbers.items():
            sums[key] += value
        sums["steps"] += 1
        done = step + 1
        cycle = schedule.ends_cycle(step)
        if done % schedule.log_every == 0 or cycle or done == last:
            line = {
                "step": done,
                "seconds": round(seconds, 2),
                "rate": round(schedule.factor(step), 5),
                "gradient": round(float(norm), 4),
                "loss": sums["loss"] / sums["steps"],
            }
            line |= {key: round(sums[key] / sums[f"{key}_n"], 4) for key in sums if f"{key}_n" in sums}
            log.append(line)
            sums.clear()
            if is_main:
                with log_path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            bar.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
        # Saving right after a line of the log keeps the two in step.
        if (
            cycle
            or done == last
            or (time.monotonic() - since_save > schedule.save_every and done % schedule.log_every == 0)
        ):
            save(done)
            since_save = time.monotonic()
        if cycle and is_main:
            on_cycle(cycle)
            model.train()
    return log


def write_log(path: Path, lines: list[dict]) -> None:
    """Write log lines as JSON, one a line, under a temporary name and rename it."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(partial, path)


def autocast(device: torch.device):
    """bfloat16 arithmetic on a GPU; on a CPU it gains nothing, so float32 stays."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


# ------------------------------------------------------------------------------- stage 0: the image encoder


class Stage0(nn.Module):
    """What stage 0 trains: the two towers, and the heads that are thrown away afterwards."""

    def __init__(self, vision_config, vocab_size: int, seed: int):
        super().__init__()
        self.towers = TinySiglip(vision_config, vocab_size)
        self.heads = PatchHeads(vision_config.hidden_size)
        initialise(self, seed)


def stage0_loss(stage: Stage0, tokenizer, pictures: Pictures, per_step: int, seed: int, device) -> Callable:
    """The function that `train` calls: contrastive loss of the batch, and what each patch says of its thing."""
    patches_per_side = pictures.size // stage.towers.vision_tower.config.patch_size

    def batch_loss(step: int):
        rng = np.random.default_rng([seed, step])
        indices = rng.integers(pictures.count, size=per_step)
        scenes = [pictures.scene(int(index)) for index in indices]
        mine = process_share(per_step)
        texts = text_ids(tokenizer, [caption(scene) for scene in scenes]).to(device)  # of all processes
        labels = torch.stack([patch_labels(scene, patches_per_side) for scene in scenes]).to(device)
        pixel_values = pictures.batch(indices[mine]).to(device)
        with autocast(device):
            patches = stage.towers.vision_tower(pixel_values)  # [B, N, D]
            logits = stage.towers.similarity(stage.towers.pool_image(patches), stage.towers.text_embeddings(texts))
            dense, numbers = stage.heads.loss(patches.float(), labels[mine], everyone=labels)
            share = len(pixel_values) / per_step
            pairs = sigmoid_loss(logits.float(), first=mine.start) * share
        retrieved = (logits.argmax(dim=1).cpu() == torch.arange(per_step)[mine]).sum().item()
        numbers |= {"pairs": pairs.item(), "pairs_n": share, "retrieved": retrieved, "retrieved_n": len(pixel_values)}
        return 0.3 * pairs + dense, numbers

    return batch_loss


# ------------------------------------------------------------- stages 1 to 3: pictures, prompts and answers


class AnswerLoss:
    """Cross-entropy of the answers' tokens; location tokens have soft targets.

    A token of an answer with n tokens counts 1 / sqrt(n): one-word answers would drown among captions and masks
    if all tokens counted the same, and captions would be learned slowly if all answers did.
    """

    def __init__(self, tokenizer):
        location_ids, self.bells = soft_location_targets(tokenizer)
        self.location_ids = location_ids
        self.cell_of_token = torch.full((len(tokenizer),), -1)
        self.cell_of_token[location_ids] = torch.arange(len(location_ids))

    def to(self, device):
        self.location_ids, self.bells = self.location_ids.to(device), self.bells.to(device)
        self.cell_of_token = self.cell_of_token.to(device)
        return self

    def token_losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """logits [T, V], targets [T] -> loss of each token [T]."""
        log_probabilities = logits.float().log_softmax(dim=-1)
        losses = -log_probabilities.gather(1, targets[:, None]).squeeze(1)
        cells = self.cell_of_token[targets]
        where = cells >= 0
        if where.any():
            soft = self.bells[cells[where]]  # [locations, 65]
            losses = losses.masked_scatter(where, -(soft * log_probabilities[where][:, self.location_ids]).sum(dim=-1))
        return losses


def answer_states(model: PaliGemmaForConditionalGeneration, features, owner, batch) -> tuple:
    """The decoder's states that predict a token of the answer, and nothing that these do not need.

    `features` [P, N, D] of P pictures, encoded once however many questions are asked; `owner` [R]: the picture
    of each row; `batch` from `collate`. Returns states [T, D], their targets [T] and rows [T].

    The same numbers as `model(**batch)` has in these places. Only the answer is trained on, and nothing looks at
    the last layer's other states, so the last layer computes keys and values for all tokens and the rest
    for the answer alone: a sixth less work.
    """
    decoder = model.language_model.model
    N = features.shape[1]
    text = decoder.embed(batch["input_ids"][:, N:])  # [R, L - N, D]
    hidden = torch.cat([features[owner].to(text.dtype), text], dim=1)  # image tokens come first
    R, L, _ = hidden.shape
    position_ids = batch["attention_mask"].cumsum(dim=-1).clamp(min=1)  # [R, L]
    positions = decoder.rotary_emb(hidden, position_ids)  # cos, sin [R, L, d]
    masks = decoder.layer_masks(batch["attention_mask"], batch["token_type_ids"], L, hidden.dtype)
    for layer, mask in zip(decoder.layers[:-1], masks, strict=False):
        hidden = layer(hidden, positions, mask)

    # The token before the answer predicts its first, and so on: S places for each row, from there on.
    is_answer = batch["labels"] != -100  # [R, L]
    S = int(is_answer.sum(dim=1).max())
    places = is_answer.int().argmax(dim=1)[:, None] - 1 + torch.arange(S, device=hidden.device)
    places = places.clamp(max=L - 1)  # [R, S]
    row = torch.arange(R, device=hidden.device)[:, None]

    layer, attention = decoder.layers[-1], decoder.layers[-1].self_attn
    normed = layer.input_layernorm(hidden)
    key = attention.k_proj(normed).view(R, L, -1, attention.head_dim).transpose(1, 2)  # [R, H_kv, L, d]
    value = attention.v_proj(normed).view(R, L, -1, attention.head_dim).transpose(1, 2)
    query = attention.q_proj(normed[row, places]).view(R, S, -1, attention.head_dim).transpose(1, 2)
    key, _ = apply_rotary_pos_emb(key, key, *positions)
    query, _ = apply_rotary_pos_emb(query, query, *(p[row, places] for p in positions))  # [R, H, S, d]
    mask = masks[-1][row, 0, places].unsqueeze(1)  # [R, 1, S, L]
    attended, _ = attention.attend(query, key, value, mask)
    hidden = hidden[row, places] + attention.o_proj(attended.transpose(1, 2).flatten(2))
    hidden = decoder.norm(hidden + layer.mlp(layer.post_attention_layernorm(hidden)))  # [R, S, D]

    targets = batch["labels"][row, (places + 1).clamp(max=L - 1)]  # [R, S]
    real = torch.arange(S, device=hidden.device) < is_answer.sum(dim=1, keepdim=True)
    return hidden[real], targets[real], row.expand(R, S)[real]


def questions_loss(
    model, tokenizer, answer_loss: AnswerLoss, features, rows, chunks: int = 8, total_weight: float | None = None
):
    """Loss of questions about pictures, whose features are [P, N, D]; `rows` are (picture, task, prompt, answer).

    Rows of like length are worked on together, in `chunks` groups, so that little is padding. Returns the loss
    (the weighted mean over `total_weight`, by default that of these rows) and per task the sum of rows whose
    every token would be guessed right.
    """
    device = features.device
    lengths = answer_lengths(tokenizer, [row[3] for row in rows])
    prompt_lengths = answer_lengths(tokenizer, [row[2] for row in rows])
    if total_weight is None:
        total_weight = sum(length**0.5 for length in lengths)
    order = sorted(range(len(rows)), key=lambda i: lengths[i] + prompt_lengths[i])
    total, numbers = 0.0, defaultdict(float)
    for chunk in range(chunks):
        part = [rows[i] for i in order[chunk * len(rows) // chunks : (chunk + 1) * len(rows) // chunks]]
        if not part:
            continue
        batch = collate(tokenizer, [row[2] for row in part], [row[3] for row in part], features.shape[1])
        batch = {key: value.to(device) for key, value in batch.items()}
        owner = torch.tensor([row[0] for row in part], device=device)
        states, targets, row_of = answer_states(model, features, owner, batch)
        logits = model.language_model.lm_head(states)  # [T, V]
        per_row = torch.bincount(row_of, minlength=len(part)).float()
        losses = answer_loss.token_losses(logits, targets)
        total = total + (losses * per_row[row_of] ** -0.5).sum() / total_weight
        wrong = torch.bincount(row_of, weights=(logits.argmax(-1) != targets).float(), minlength=len(part))
        for (_, task, _, _), mistakes in zip(part, wrong.tolist(), strict=True):
            numbers[task] += mistakes == 0
            numbers[f"{task}_n"] += 1
    return total, dict(numbers)


def answer_lengths(tokenizer, answers: list[str]) -> list[int]:
    """How many tokens each answer has, <eos> included."""
    return [len(ids) + 1 for ids in tokenizer(answers, add_special_tokens=False)["input_ids"]]


def mask_codes(mask_tokenizer) -> Callable:
    """A function from a thing to its 16 mask codes, looked up in a table of every shape and angle."""
    angles = [round(-12 + 0.1 * i, 1) for i in range(241)]
    table = {}
    with torch.inference_mode():
        for shape in SHAPES:
            masks = np.stack([shape_mask(shape, angle, 64) for angle in angles])
            codes = torch.cat([mask_tokenizer.encode(part) for part in torch.from_numpy(masks).split(32)])
            table |= {(shape, angle): code.tolist() for angle, code in zip(angles, codes, strict=True)}
    return lambda thing: table[thing.shape, thing.angle]


def mixture_loss(
    model,
    tokenizer,
    pictures: Pictures,
    per_step: int,
    per_picture: int,
    seed: int,
    codes,
    weights: dict[str, float],
    device,
    easy_steps: int = 0,
    heads: PatchHeads | None = None,
    heads_weight: float = 0.0,
) -> Callable:
    """The function that `train` calls in stages 1 and 2: all tasks mixed.

    With `heads`, each patch goes on telling what it shows, as in stage 0, at a low weight: the answers alone
    teach the encoder slowly where a thing's edges are, and boxes are to be right to half a pixel.
    The first `easy_steps` see pictures of one or two things only: which word belongs to which thing is learned
    sooner where there is little to confuse.
    """
    answer_loss = AnswerLoss(tokenizer).to(device)

    def batch_loss(step: int):
        rng = np.random.default_rng([seed, step])
        most = 2 if step < easy_steps else pictures.max_things
        scenes, indices = [], []
        while len(scenes) < per_step:
            index = int(rng.integers(pictures.count))
            if len((scene := pictures.scene(index)).things) <= most:
                scenes.append(scene)
                indices.append(index)
        rows = draw_questions(scenes, weights, per_picture, rng, codes)  # of all processes
        weight = sum(length**0.5 for length in answer_lengths(tokenizer, [row[3] for row in rows]))
        mine = process_share(per_step)
        rows = [(row[0] - mine.start, *row[1:]) for row in rows if mine.start <= row[0] < mine.stop]
        with autocast(device):
            patches = model.vision_tower(pictures.batch(indices[mine]).to(device))  # [P, N, D_image]
            features = model.multi_modal_projector(patches)  # [P, N, D]
            loss, numbers = questions_loss(model, tokenizer, answer_loss, features, rows, total_weight=weight)
            if heads is not None:
                side = round(patches.shape[1] ** 0.5)
                labels = torch.stack([patch_labels(scene, side) for scene in scenes]).to(device)
                dense, patch_numbers = heads.loss(patches.float(), labels[mine], everyone=labels, beta=0.25)
                loss, numbers = loss + heads_weight * dense, numbers | patch_numbers
        return loss, numbers

    return batch_loss


# ---------------------------------------------------------------------------------------------- the commands


def run_stage0(args, device) -> None:
    processor = build_processor()
    config = build_model(processor).config.vision_config
    stage = Stage0(config, len(processor.tokenizer), args.seed).to(device)
    pictures = Pictures(args.pictures, folder=args.cache)
    steps = args.steps or (700 if args.quick else 1400)
    schedule = Schedule(cycles=((steps, 1.0),), seed=args.seed, save_every=args.save_every)
    out = Path(args.out or "runs/stage0")

    def finish(_):
        save_towers(stage.towers, out / "tiny-siglip")
        save_file(stage.heads.state_dict(), out / "tiny-siglip/heads.safetensors")

    batch_loss = stage0_loss(stage, processor.tokenizer, pictures, args.per_step or 64, args.seed, device)
    train(stage, batch_loss, schedule, out, finish)


def save_towers(towers: TinySiglip, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the two towers as config.json and model.safetensors, each renamed when complete."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in towers.state_dict().items()}
    partial = folder / "model.safetensors.tmp"
    save_file(weights, partial, metadata={"format": "pt"})
    os.replace(partial, folder / "model.safetensors")
    vision = asdict(towers.vision_tower.config)
    vision.pop("attention")
    config = {"model_type": "tiny-siglip", "vocab_size": towers.token_embedding.num_embeddings, "vision_config": vision}
    partial = folder / "config.json.tmp"
    partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / "config.json")


def start_from_encoder(model: PaliGemmaForConditionalGeneration, folder: Path) -> None:
    """Put stage 0's image encoder into the whole model. Raises FileNotFoundError when stage 0 was not run."""
    path = folder / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `python -m paligemma.training stage0` first.")
    weights = {
        name.removeprefix("vision_tower."): tensor.float()
        for name, tensor in load_file(path).items()
        if name.startswith("vision_tower.")
    }
    model.vision_tower.load_state_dict(weights)


def run_stage1(args, device) -> None:
    processor = build_processor()
    if args.start:  # go on from an earlier cycle with a new schedule
        model, processor = load_pretrained(args.start)
    else:
        model = build_model(processor, args.seed)
        start_from_encoder(model, Path(args.encoder))
    model.to(device)
    if args.cycles:
        cycles = tuple(
            (int(steps), float(factor)) for steps, factor in (cycle.split("x") for cycle in args.cycles.split(","))
        )
    else:
        cycles = ((700, 1.0),) if args.quick else ((1100, 1.0), (3200, 0.6))
    train_mixture(
        args,
        device,
        model,
        processor,
        Schedule(cycles=cycles, seed=args.seed, save_every=args.save_every),
        Path(args.out or "runs/stage1"),
        easy_steps=0 if args.start else 250,
        heads_weight=args.patch_labels,
    )


def run_stage2(args, device) -> None:
    model, processor = load_pretrained(args.start or SHIPPED)
    model = at_resolution(model, args.image_size)
    processor.image_size, processor.image_seq_length = args.image_size, model.config.vision_config.num_image_tokens
    model.to(device)
    schedule = Schedule(cycles=((args.steps or 600, 0.3),), seed=args.seed, save_every=args.save_every)
    train_mixture(args, device, model, processor, schedule, Path(args.out or "runs/stage2"), size=args.image_size)


class Stage1(nn.Module):
    """What stages 1 and 2 train: the model, and the heads of stage 0 if they go on helping."""

    def __init__(self, model: PaliGemmaForConditionalGeneration, heads: PatchHeads | None):
        super().__init__()
        self.model, self.heads = model, heads


def train_mixture(
    args, device, model, processor, schedule, out: Path, size: int = 64, easy_steps: int = 0, heads_weight: float = 0.0
) -> None:
    pictures = Pictures(args.pictures, size=size, folder=args.cache)
    codes = mask_codes(load_mask_tokenizer(args.masks))
    weights = dict(QUICK_WEIGHTS if args.quick else TASK_WEIGHTS)
    for change in args.weights.split(",") if args.weights else []:
        task, _, weight = change.partition("=")
        if task not in weights:
            raise ValueError(f"--weights names the task {task!r}; expected some of {', '.join(weights)}.")
        weights[task] = float(weight)
    heads = None
    if heads_weight:
        heads = PatchHeads(model.config.vision_config.hidden_size)
        heads.load_state_dict(load_file(args.heads or Path(args.encoder) / "heads.safetensors"))
        heads.to(device)
    batch_loss = mixture_loss(
        model,
        processor.tokenizer,
        pictures,
        args.per_step or 48,
        3,
        args.seed,
        codes,
        weights,
        device,
        easy_steps,
        heads,
        heads_weight,
    )

    def export(name: str) -> None:
        save_pretrained(model, processor, out / name)
        if heads is not None:
            save_file(heads.state_dict(), out / "heads.safetensors")

    train(Stage1(model, heads), batch_loss, schedule, out, lambda cycle: export(f"cycle{cycle}"), args.stop_at)
    if args.stop_at and (not dist.is_initialized() or dist.get_rank() == 0):
        export(f"step{args.stop_at}")


def at_resolution(model: PaliGemmaForConditionalGeneration, image_size: int) -> PaliGemmaForConditionalGeneration:
    """The same weights for larger pictures: more patches, their position embeddings interpolated.

    Bilinear, as the official code does when it moves from 224 to 448 pixels (big_vision, models/vit.py,
    resample_posemb). Raises ValueError when the size is not a whole number of patches.
    """
    config = model.config
    patch = config.vision_config.patch_size
    if image_size % patch:
        raise ValueError(
            f"A picture of {image_size} pixels is not a whole number of {patch}-pixel patches; "
            f"choose a multiple of {patch}."
        )
    vision = {**asdict(config.vision_config), "image_size": image_size, "num_image_tokens": None}
    new_config = type(config)(**{**config.__dict__, "vision_config": type(config.vision_config)(**vision)})
    bigger = PaliGemmaForConditionalGeneration(new_config)
    weights = dict(model.state_dict())
    name = "vision_tower.vision_model.embeddings.position_embedding.weight"
    table = weights[name]  # [N, D]
    old, new = round(len(table) ** 0.5), image_size // patch
    grid = table.view(1, old, old, -1).permute(0, 3, 1, 2)  # [1, D, old, old]
    grid = F.interpolate(grid, size=(new, new), mode="bilinear", align_corners=False)
    weights[name] = grid.permute(0, 2, 3, 1).reshape(new * new, -1)
    bigger.load_state_dict(weights)
    return bigger


def redraw_collapsed_embeddings(model, tokenizer, texts: list[str], alike: float = 0.9, seed: int = 0) -> list[int]:
    """Give tokens of `texts` that no training has seen fresh random embeddings; returns their ids, in order.

    The model is changed in place. At every step the softmax pushes down all tokens but the right one, and those
    that are never right or read are pushed in one direction only, until their embeddings are all but the same and
    neither as input nor, tied, as head can the model tell them apart. `<unk>` is such a token, so a token counts
    as collapsed when its cosine similarity with `<unk>` is above `alike`: in the shipped model it is above 0.95
    for tokens that never occurred, and below 0.6 for all others. The new rows are drawn as `initialise` draws
    them, with standard deviation 1 / sqrt(width). In a model with random embeddings nothing is collapsed, and
    nothing changes.
    """
    table = model.language_model.model.embed_tokens.weight  # [V, D]
    used = sorted({i for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for i in ids})
    with torch.no_grad():
        similarity = F.cosine_similarity(table[used], table[tokenizer.unk_token_id], dim=-1)
        collapsed = [i for i, value in zip(used, similarity.tolist(), strict=True) if value > alike]
        fresh = torch.randn(len(collapsed), table.shape[1], generator=torch.Generator().manual_seed(seed))
        table[collapsed] = (fresh * table.shape[1] ** -0.5).to(table)
    return collapsed


def finetune(
    model,
    processor,
    images,
    prompts: list[str],
    answers: list[str],
    steps: int = 150,
    per_step: int = 16,
    muon_lr: float = 4e-3,
    adam_lr: float = 4e-3,
    seed: int = 0,
    progress: bool = True,
) -> list[float]:
    """Stage 3: teach the model a new task from pictures, prompts and answers, in memory; returns the losses.

    The model is changed in place. `images` are PIL pictures, one to each prompt and answer. Every weight is
    trained, the embeddings as they are: where the task's words never occurred before, call
    `redraw_collapsed_embeddings` first. The rates are high because such words have everything to learn in few
    steps: at a third of them, half as many Korean captions came out right. Raises ValueError for lists of unequal
    length or without any example.
    """
    if not len(images) == len(prompts) == len(answers) or not images:
        raise ValueError(
            f"Expected as many pictures as prompts and answers, and at least one; got {len(images)} "
            f"pictures, {len(prompts)} prompts and {len(answers)} answers."
        )
    device = model.device
    pixel_values = processor(text=list(prompts), images=list(images))["pixel_values"]
    schedule = Schedule(cycles=((steps, 1.0),), muon_lr=muon_lr, adam_lr=adam_lr, warmup=20, seed=seed)
    optimizers = make_optimizers(model, schedule)
    answer_loss = AnswerLoss(processor.tokenizer).to(device)
    rng = np.random.default_rng(seed)
    losses, order = [], []
    was_training = model.training
    model.train()
    for step in tqdm(range(steps), unit=" steps", disable=not progress):
        while len(order) < per_step:  # every example once before any comes again
            order += rng.permutation(len(images)).tolist()
        chosen, order = order[:per_step], order[per_step:]
        rows = [(row, "new", prompts[i], answers[i]) for row, i in enumerate(chosen)]
        for optimizer, rate in zip(optimizers, (muon_lr, adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * schedule.factor(step)
            optimizer.zero_grad(set_to_none=True)
        with autocast(device):
            features = model.get_image_features(pixel_values[chosen].to(device))
            loss, _ = questions_loss(model, processor.tokenizer, answer_loss, features, rows, chunks=1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    model.train(was_training)
    return losses


def run_stage3(args, device) -> None:
    """Korean captions of scenes with one or two things, and half as many English ones so that these are not lost."""
    from ..world.scenes import draw, make_scene

    model, processor = load_pretrained(args.start or SHIPPED, device=device)
    new = [make_scene(500_000 + i, max_things=2) for i in range(args.examples)]
    old = [make_scene(600_000 + i, max_things=2) for i in range(args.examples // 2)]
    prompts = ["caption ko"] * len(new) + ["caption en"] * len(old)
    answers = [caption(scene, "ko") for scene in new] + [caption(scene) for scene in old]
    redraw_collapsed_embeddings(model, processor.tokenizer, prompts + answers, seed=args.seed)
    losses = finetune(
        model,
        processor,
        [draw(scene) for scene in new + old],
        prompts,
        answers,
        steps=args.steps or 150,
        seed=args.seed,
    )
    out = Path(args.out or "runs/stage3")
    save_pretrained(model, processor, out / "model")
    write_log(out / "log.jsonl", [{"step": i + 1, "loss": loss} for i, loss in enumerate(losses)])


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m paligemma.training", description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=["stage0", "stage1", "stage2", "stage3"])
    parser.add_argument("--out", help="folder of the run (default runs/STAGE)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="steps of the stage (stages 0, 2, 3)")
    parser.add_argument("--cycles", help="stage 1: steps x factor of each cycle, such as 1200x1.0,1800x0.5")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="stages 0 and 1: words only and fewer steps, within 30 minutes on two cores",
    )
    parser.add_argument("--pictures", type=int, default=60_000, help="how many training pictures to draw")
    parser.add_argument("--per-step", type=int, help="pictures a step")
    parser.add_argument("--cache", default="runs", help="folder for the drawn pictures")
    parser.add_argument("--encoder", default="runs/stage0/tiny-siglip", help="stage 1: where stage 0 left it")
    parser.add_argument("--stop-at", type=int, help="stages 1, 2: stop before this step; the same command goes on")
    parser.add_argument("--weights", help="stages 1, 2: other weights of tasks, such as detect=3,relation=1")
    parser.add_argument(
        "--patch-labels",
        type=float,
        default=0.3,
        help="stage 1: weight of stage 0's labels for each patch (0: without)",
    )
    parser.add_argument("--heads", help="stage 1: file of the maps for --patch-labels (default: stage 0's)")
    parser.add_argument("--start", help=f"the model to go on from (stages 2 and 3: {SHIPPED})")
    parser.add_argument("--masks", default="assets/mask-tokenizer", help="folder of the mask tokenizer")
    parser.add_argument("--image-size", type=int, default=96, help="stage 2: pixels a side")
    parser.add_argument("--examples", type=int, default=600, help="stage 3: how many captions to learn from")
    parser.add_argument("--save-every", type=float, default=60.0, help="seconds between two training states")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    args = parse_arguments(arguments)
    device = torch.device(args.device)
    if "RANK" in os.environ:  # started by torchrun
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    stages = {"stage0": run_stage0, "stage1": run_stage1, "stage2": run_stage2, "stage3": run_stage3}
    try:
        stages[args.stage](args, device)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0
