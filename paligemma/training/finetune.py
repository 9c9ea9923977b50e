"""Stage 3: teach a trained model a new task from pictures, prompts and answers that are in memory."""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..config_checks import check_count
from ..modeling_gemma import PaliGemmaForConditionalGeneration
from ..processing_paligemma import PaliGemmaProcessor
from .adapt import gradient_checkpointing
from .losses import AnswerLoss, Row, answer_lengths, autocast, empty_loss, questions_loss
from .optimizers import Schedule, make_optimizers, update
from .parallel import process_share


def finetune(
    model: PaliGemmaForConditionalGeneration,
    processor: PaliGemmaProcessor,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    answers: Sequence[str],
    steps: int = 150,
    per_step: int = 16,
    muon_lr: float = 4e-3,
    adam_lr: float = 4e-3,
    seed: int = 0,
    progress: bool = True,
    checkpointing: bool = False,
    soft_locations: bool = True,
) -> list[float]:
    """Teach the model a new task; returns the loss of each step. The model is changed in place.

    `images` are PIL pictures, one to each prompt and answer. Every weight that requires a gradient is trained, the
    embeddings as they are: where the task's words never occurred before, call `redraw_collapsed_embeddings` first.
    The rates are high because such words have everything to learn in few steps: at a third of them, half as many
    Korean captions came out right. `checkpointing` saves memory and costs a third more time. Without `soft_locations`
    a location token is one like any other: for boxes off the little world's grid. Works for PaliGemma 2. Several
    processes (torchrun) share each step's examples.

    Raises ValueError for lists of unequal length or without any example, for several pictures a prompt, and for a
    model in float16; FloatingPointError, with the model as it was before the step, when the loss or its gradient is
    not finite.
    """
    check_examples(model, images, prompts, answers)
    for name, value in (("steps", steps), ("per_step", per_step)):
        check_count(name, value)
    device = model.device
    pixel_values = processor(text=list(prompts), images=list(images), suffix=list(answers))["pixel_values"]
    schedule = Schedule(cycles=((steps, 1.0),), muon_lr=muon_lr, adam_lr=adam_lr, warmup=20, seed=seed)
    optimizers = make_optimizers(model, schedule)
    answer_loss = AnswerLoss(processor.tokenizer, soft_locations).to(device)
    lengths = answer_lengths(processor.tokenizer, list(answers))
    mine = process_share(per_step)
    rng = np.random.default_rng(seed)

    def loss_of(rows: list[Row], pictures: torch.Tensor, total_weight: float) -> torch.Tensor:
        with autocast(device):
            features = model.get_image_features(pictures.to(device))
            return questions_loss(model, processor.tokenizer, answer_loss, features, rows, 1, total_weight)[0]

    losses, order = [], []
    was_training = model.training
    model.train()
    model.zero_grad(set_to_none=True)  # the caller may have looked at gradients: they are not of these examples
    try:
        with gradient_checkpointing(model) if checkpointing else nullcontext():
            for step in tqdm(range(steps), unit=" steps", disable=not progress):
                while len(order) < per_step:  # every example once before any comes again
                    order += rng.permutation(len(images)).tolist()
                chosen, order = order[:per_step], order[per_step:]
                total_weight = sum(lengths[i] ** 0.5 for i in chosen)  # of all processes
                chosen = chosen[mine]
                rows = [(row, "new", prompts[i], answers[i]) for row, i in enumerate(chosen)]
                loss = loss_of(rows, pixel_values[chosen], total_weight) if rows else empty_loss(model)
                losses.append(update(model, optimizers, schedule, step, loss)[0])
    finally:
        model.train(was_training)
    return losses


def check_examples(model, images, prompts, answers) -> None:
    """Raise ValueError for what cannot be trained on."""
    if not len(images) == len(prompts) == len(answers) or not len(images):
        raise ValueError(
            f"{len(images)} pictures came with {len(prompts)} prompts and {len(answers)} answers, expected as many of "
            "each, and one or more"
        )
    for index, image in enumerate(images):
        if isinstance(image, list | tuple):
            raise ValueError(
                f"images[{index}] is a {type(image).__name__} of {len(image)}, expected one picture: each prompt is "
                "trained with a single one"
            )
    if model.dtype == torch.float16:
        raise ValueError(
            "the model is in float16, expected float32 or bfloat16: in float16 gradients overflow, and one step makes "
            "every weight NaN. Load it with dtype=torch.float32"
        )
