"""One step of training: how large the learning rates are, which optimiser has which weights, and the update."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from .muon import Muon
from .parallel import all_reduce_gradients, all_reduce_sum


@dataclass
class Schedule:
    """How a stage is trained: linear warm-up and cosine decay to 0, with restarts.

    `cycles` are (steps, factor): in each cycle both learning rates, times the factor, rise and decay once.
    """

    cycles: tuple[tuple[int, float], ...]
    muon_lr: float = 5e-3
    adam_lr: float = 3e-3
    warmup: int = 100  # steps, but never more than a fifth of a cycle
    weight_decay: float = 0.1  # of the matrices
    clip: float = 1.0  # the largest norm that the gradient keeps
    seed: int = 0
    save_every: float = 60.0  # seconds between two state.pt
    log_every: int = 10  # steps between two lines of log.jsonl

    @property
    def steps(self) -> int:
        return sum(steps for steps, _ in self.cycles)

    def factor(self, step: int) -> float:
        """What the learning rates are multiplied by at this step."""
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

    Muon gives all directions of a matrix's update the same strength. An embedding, of which a step touches a few
    rows, is not a matrix in that sense, nor is half of a LoRA product. With `muon_lr` 0 AdamW has everything. Frozen
    weights are left out; an optimiser that would have no weights is not made. Raises ValueError when everything is
    frozen.
    """
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim == 2 and "embed" not in name and "lora" not in name
            by_muon = is_matrix and not name.startswith("heads.") and schedule.muon_lr > 0
            (matrices if by_muon else others).append(parameter)
    if not matrices and not others:
        raise ValueError("no weight of the model requires a gradient, expected one or more: unfreeze what is to learn")
    optimizers = []
    if matrices:
        optimizers.append(Muon(matrices, lr=schedule.muon_lr, weight_decay=schedule.weight_decay))
    if others:
        optimizers.append(torch.optim.AdamW(others, lr=schedule.adam_lr, betas=(0.9, 0.99), weight_decay=0.0))
    return optimizers


def update(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], schedule: Schedule, step: int, loss: torch.Tensor
) -> tuple[float, float]:
    """One step down the gradient of `loss`, this process's share; returns the whole loss and the gradient's norm.

    Raises FloatingPointError, before any weight has changed, when either is not a finite number.
    """
    loss.backward()
    all_reduce_gradients(model)
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), schedule.clip))
    total = all_reduce_sum(loss)
    if not (math.isfinite(total) and math.isfinite(norm)):
        model.zero_grad(set_to_none=True)  # they would spoil the next step, too
        raise FloatingPointError(
            f"at step {step} the loss is {total} and the norm of its gradient {norm}, expected finite numbers: lower "
            "the learning rates, or look for examples that the model cannot fit"
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * schedule.factor(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total, norm
