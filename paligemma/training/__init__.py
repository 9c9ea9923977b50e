"""PaliGemma's training recipe in miniature: one command a stage.

    python -m paligemma.training stage0       the image encoder alone: SigLIP's sigmoid loss, and labels per patch
    python -m paligemma.training stage1       all of it together, nothing frozen, every task mixed
    python -m paligemma.training stage2       the same at a higher resolution
    python -m paligemma.training stage3       transfer to a new task, Korean captions, from a few hundred examples

A stage writes into its folder under runs/: log.jsonl (one line every few steps), state.pt (everything needed to
go on; written every minute or so) and, at the end of each cycle of the learning rate, a finished model. Run the
same command again after an interruption and it goes on exactly where it stopped: every batch is a function of
the seed and the step alone. `torchrun --nproc-per-node 2 -m paligemma.training stage1` shares each batch among
processes; their gradients are summed, so the result is that of one process.

    loop.py         the training loop: steps, log, exact resume
    optimizers.py   the learning rate's schedule, which weights go to which optimiser, the update
    muon.py         the optimiser of the matrices
    losses.py       what each stage learns from
    adapt.py        a trained model before it is trained on: resolution, fresh words, gradient checkpointing
    finetune.py     a new task from pictures, prompts and answers in memory
    stages.py       the four stages; __main__.py: their command line
    parallel.py     several processes

Recipe: Beyer et al. 2024, "PaliGemma", section 3.2 (stages, prefix-LM, loss on the suffix). Optimisers: Muon
(Jordan et al. 2024) for the matrices, AdamW for the rest.
"""

from .adapt import at_resolution, gradient_checkpointing, redraw_collapsed_embeddings
from .finetune import finetune
from .loop import Metric, read_log, train, write_log
from .losses import (
    AnswerLoss,
    ModelWithPatchHeads,
    PatchHeads,
    Stage0,
    answer_lengths,
    answer_states,
    autocast,
    held_out_loss,
    mixture_loss,
    questions_loss,
    stage0_loss,
)
from .muon import Muon
from .optimizers import Schedule, make_optimizers, update
from .parallel import shard
from .stages import QUICK_WEIGHTS, TASK_WEIGHTS

__all__ = [
    "QUICK_WEIGHTS",
    "TASK_WEIGHTS",
    "AnswerLoss",
    "Metric",
    "ModelWithPatchHeads",
    "Muon",
    "PatchHeads",
    "Schedule",
    "Stage0",
    "answer_lengths",
    "answer_states",
    "at_resolution",
    "autocast",
    "finetune",
    "gradient_checkpointing",
    "held_out_loss",
    "make_optimizers",
    "mixture_loss",
    "questions_loss",
    "read_log",
    "redraw_collapsed_embeddings",
    "shard",
    "stage0_loss",
    "train",
    "update",
    "write_log",
]
