"""Train a model on a folder of examples: epochs, validation by answers, exact resume, and files that others open."""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..checkpoint import EMBEDDING, save_pretrained
from ..files import write_atomically
from ..generation import generate
from ..modeling_gemma import PaliGemmaConfig, PaliGemmaForConditionalGeneration
from ..processing_paligemma import PaliGemmaProcessor
from ..training import AnswerLoss, Metric, Schedule, answer_lengths, autocast, finetune, questions_loss, train
from ..training.loop import open_folder, parse_line
from ..training.losses import empty_loss
from ..training.parallel import is_main_process, process_share, wait_for_all
from ..world.evaluation import detection_ious
from .folder import Example
from .lora import add_lora, linear_maps, lora_maps, merge_lora, save_adapter

SMALL = 50e6  # parameters up to which a model is trained at the little world's rates


@dataclass
class Plan:
    """How the folder is trained on. Everything here decides the result, but for `save_every`."""

    epochs: int = 10
    batch: int = 16
    lr: float | None = None  # None: by the model's size, see `rates`
    lora: int = 0  # the rank; 0 trains the weights themselves
    part: str = "all"  # which part of the model is trained, see lora.PARTS
    train_embeddings: bool = False  # the embedding table beside the part or the LoRA changes
    max_answer: int = 256
    seed: int = 0
    checkpointing: bool = False
    save_every: float = 60.0


def prepare(model: PaliGemmaForConditionalGeneration, plan: Plan) -> None:
    """Freeze what is not trained: all but the LoRA changes, or all but a part, or nothing; embeddings on request."""
    if plan.lora:
        add_lora(model, plan.lora, part=plan.part, seed=plan.seed, train_embeddings=plan.train_embeddings)
    elif plan.part != "all":
        model.requires_grad_(False)
        model.get_parameter(EMBEDDING).requires_grad_(plan.train_embeddings)
        for layer in linear_maps(model, plan.part).values():
            layer.requires_grad_(True)


def rates(model: nn.Module, plan: Plan) -> dict[str, float]:
    """Learning rates of Muon and AdamW: high ones for a small model, which has much to learn, low for a large one.

    1e-5 is what big_vision's transfers take for all weights, 2e-4 what LoRA is usually given.
    """
    is_small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    lr = plan.lr or (4e-3 if is_small else 2e-4 if plan.lora else 1e-5)
    return {"muon_lr": lr if is_small else 0.0, "adam_lr": lr}


def memory(config: PaliGemmaConfig, plan: Plan, dtype: torch.dtype) -> dict[str, float]:
    """Gigabytes that training needs before any picture is looked at, from the configuration alone.

    Weights, gradients and the optimiser's state (two numbers for each trained weight). What the layers keep for the
    backward pass comes on top: it grows with the batch, which is halved when the memory does not suffice.
    """
    with torch.device("meta"):
        model = PaliGemmaForConditionalGeneration(config).to(dtype)
        prepare(model, plan)
    bytes_of = {
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()),
        "gradients": sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
    }
    bytes_of["optimiser"] = 2 * bytes_of["gradients"]
    return {name: size / 1e9 for name, size in bytes_of.items()}


# ------------------------------------------------------------------------------------------------------ the training


class Trained(nn.Module):
    """The model as the training loop sees it: its state is that of the trained weights, the others do not change."""

    def __init__(self, model: PaliGemmaForConditionalGeneration):
        super().__init__()
        self.model = model

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def state_dict(self, *args, **kwargs) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self.trained().items()}

    def load_state_dict(self, state: dict[str, torch.Tensor], *args, **kwargs) -> None:
        trained = self.trained()
        if {name: tensor.shape for name, tensor in state.items()} != {name: p.shape for name, p in trained.items()}:
            raise ValueError("its weights are not those that are trained here")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(state[name])


def epoch_loss(
    model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor, examples: Sequence[Example], plan: Plan
) -> Callable[[int], tuple[torch.Tensor, dict[str, Metric]]]:
    """The function that `train` calls: the examples in a new order in each epoch, `plan.batch` a step.

    When a batch does not fit into memory it is worked on in halves, quarters and so on, whose gradients add up to the
    same gradient.
    """
    answer_loss = AnswerLoss(processor.tokenizer, soft=False).to(model.device)
    per_epoch = steps_per_epoch(examples, plan)
    parts = 1

    def part_loss(part: list[Example], total_weight: float) -> tuple[torch.Tensor, dict[str, Metric]]:
        inputs = processor(text=[one.prompt for one in part], images=[one.picture() for one in part])
        rows = [(index, "answers right", one.prompt, one.answer) for index, one in enumerate(part)]
        with autocast(model.device):
            features = model.get_image_features(inputs["pixel_values"].to(model.device))
            return questions_loss(model, processor.tokenizer, answer_loss, features, rows, 1, total_weight)

    def batch_loss(step: int) -> tuple[torch.Tensor, dict[str, Metric]]:
        nonlocal parts
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([plan.seed, epoch]).permutation(len(examples))
        batch = [examples[i] for i in order[place * plan.batch : (place + 1) * plan.batch]]
        total_weight = sum(length**0.5 for length in answer_lengths(processor.tokenizer, [one.answer for one in batch]))
        mine = batch[process_share(len(batch))]
        if not mine:  # a last batch of fewer examples than processes
            return empty_loss(model), {"answers right": Metric(0, 0)}
        while True:
            try:
                pieces = [mine[i * len(mine) // parts : (i + 1) * len(mine) // parts] for i in range(parts)]
                loss, total = torch.zeros((), device=model.device), torch.zeros((), device=model.device)
                metrics = {"answers right": Metric(0, 0)}
                for number, piece in enumerate([piece for piece in pieces if piece]):
                    if number:
                        loss.backward()  # of the piece before; the loop's own backward is that of the last piece
                        total = total + loss.detach()
                    loss, found = part_loss(piece, total_weight)
                    metrics["answers right"] += found["answers right"]
                return loss + total, metrics
            except torch.cuda.OutOfMemoryError:
                if parts >= len(mine):
                    raise
                parts *= 2
                model.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()

    return batch_loss


def steps_per_epoch(examples: Sequence[Example], plan: Plan) -> int:
    return -(-len(examples) // plan.batch)


def overfit(
    model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor, examples: Sequence[Example], plan: Plan
) -> tuple[list[str], list[str]]:
    """Learn four examples by heart, ask for them, and put the weights back: (the answers, what they should be).

    What cannot even repeat four examples has a mistake in it, and no amount of data helps.
    """
    chosen = list({one.answer: one for one in reversed(examples)}.values())[-4:]  # of different answers
    trained = Trained(model)
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    pictures = [one.picture() for one in chosen]
    prompts, answers = [one.prompt for one in chosen], [one.answer for one in chosen]
    finetune(
        model, processor, pictures, prompts, answers, steps=60, per_step=4, **rates(model, plan), seed=plan.seed,
        progress=False, checkpointing=plan.checkpointing, soft_locations=False,
    )  # fmt: skip
    said = generate(model, processor, pictures, prompts, max_new_tokens=plan.max_answer)
    trained.load_state_dict(before)
    return said, answers


def validate(
    model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor, examples: Sequence[Example], plan: Plan
) -> tuple[dict[str, float], list[str]]:
    """Ask for every answer: the share that is exactly right, mean IoU of boxes, the share that does not end.

    Where some answers hold boxes and others do not, `exact words` is the share of the others alone.
    """
    was_training, said, endless = model.training, [], 0
    model.eval()
    for start in range(0, len(examples), 16):
        part = examples[start : start + 16]
        texts, probabilities = generate(
            model, processor, [one.picture() for one in part], [one.prompt for one in part], plan.max_answer,
            return_probabilities=True,
        )  # fmt: skip
        said += texts
        endless += sum(len(given) >= plan.max_answer for given in probabilities)  # no <eos> among them
    model.train(was_training)
    right = [text == one.answer for text, one in zip(said, examples, strict=True)]
    figures = {"exact": float(np.mean(right)), "without <eos>": endless / len(examples)}
    words = [is_right for is_right, one in zip(right, examples, strict=True) if "<loc" not in one.answer]
    if 0 < len(words) < len(examples):  # a box is hardly ever right to the last of its 1,024 places
        figures["exact words"] = float(np.mean(words))
    ious = [iou for text, one in zip(said, examples, strict=True) if "<loc" in one.answer
            for iou in detection_ious(one.answer, text)]  # fmt: skip
    if ious:
        figures["mean IoU"] = float(np.mean(ious))
    return figures, said


def train_on(
    model: PaliGemmaForConditionalGeneration,
    processor: PaliGemmaProcessor,
    examples: dict[str, list[Example]],
    plan: Plan,
    out: str | Path,
    source: str,
    tell: Callable[[str], None] = print,
) -> list[dict]:
    """All epochs, with the answers to the validation examples after each; returns a line of figures for each.

    Writes log.jsonl, epochs.jsonl, answers.jsonl (of the last epoch) and state.pt into `out`, and at the end model/,
    or with LoRA adapter/. The same call goes on after an interruption. `model` is the prepared one, `source` the name
    of the model that it was.
    """
    out = open_folder(out)
    train_examples, held_out = examples["train"], examples["valid"]
    per_epoch = steps_per_epoch(train_examples, plan)
    schedule = Schedule(
        cycles=((plan.epochs * per_epoch, 1.0),),
        warmup=max(1, plan.epochs * per_epoch // 20),
        seed=plan.seed,
        save_every=plan.save_every,
        log_every=1 if per_epoch < 10 else 10,
        **rates(model, plan),
    )
    options = {"model": source, "examples": fingerprint(train_examples), **asdict(plan)}
    del options["save_every"]
    batch_loss, trained = epoch_loss(model, processor, train_examples, plan), Trained(model)
    lines = read_epochs(out / "epochs.jsonl") if (out / "state.pt").exists() else []
    for epoch in range(plan.epochs + 1):  # epoch 0 is the model as it came
        log = train(trained, batch_loss, schedule, out, stop_at=epoch * per_epoch, options=options) if epoch else []
        wait_for_all()
        if epoch < len(lines) or not is_main_process():
            continue
        line = {"epoch": epoch, "step": epoch * per_epoch}
        if log:
            line["loss"] = round(log[-1]["loss"], 4)
        if held_out:
            figures, said = validate(model, processor, held_out, plan)
            line |= {name: round(value, 4) for name, value in figures.items()}
            with write_atomically(out / "answers.jsonl") as partial:
                text = "".join(answer_line(one, answer) for one, answer in zip(held_out, said, strict=True))
                partial.write_text(text, encoding="utf-8")
            for index in sorted({i * len(held_out) // 8 for i in range(8)}):
                tell(told_answer(held_out[index], said[index]))
        tell("  ".join(f"{name} {value}" for name, value in line.items()))
        lines.append(line)
        with write_atomically(out / "epochs.jsonl") as partial:
            partial.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    if is_main_process():
        model.eval()
        if plan.lora:
            save_adapter(model, out / "adapter", source)
        else:
            save_pretrained(model, processor, out / "model")
    return lines


def fingerprint(examples: Sequence[Example]) -> str:
    """How many examples, and eight hexadecimal digits that change with their pictures, prompts and answers."""
    total, pictures = 0, {}
    for one in examples:
        if one.image not in pictures:
            pictures[one.image] = zlib.crc32(one.image.read_bytes())
        total = zlib.crc32(json.dumps([pictures[one.image], one.prompt, one.answer]).encode(), total)
    return f"{len(examples)}, {total:08x}"


def answer_line(example: Example, said: str) -> str:
    line = {"image": str(example.image), "prefix": example.prompt, "suffix": example.answer, "said": said}
    return json.dumps(line, ensure_ascii=False) + "\n"


def told_answer(example: Example, said: str) -> str:
    is_right = said == example.answer
    expected = "" if is_right else f", expected {example.answer!r}"
    said = said if len(said) <= 200 else said[:199] + "…"  # an answer without an end would fill the screen
    return f"    {'right' if is_right else 'wrong'}  {example.image.name}  {example.prompt!r}: {said!r}{expected}"


def read_epochs(path: Path) -> list[dict]:
    """The lines of epochs.jsonl up to the first that is damaged: epochs from there on are validated again."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        line = parse_line(text)
        if line is None or line.get("epoch") != len(lines):
            break
        lines.append(line)
    return lines


def merged_model(model: PaliGemmaForConditionalGeneration, processor, folder: Path) -> None:
    """Add the LoRA changes to the weights and save the plain model, which any program opens."""
    if lora_maps(model):
        merge_lora(model)
    save_pretrained(model, processor, folder)
