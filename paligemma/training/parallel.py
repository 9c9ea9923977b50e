"""What the processes of one run share. Without `torchrun` there is one, and nothing here does anything.

Data parallelism: each process takes its share of every batch, the gradients are summed, and so all processes take
the same step. `shard` is for models that are too large for one device (docs/performance.md).
"""

import os

import torch
import torch.distributed as dist
from torch import nn

from ..modeling_gemma import PaliGemmaForConditionalGeneration


def start_processes(device: torch.device) -> torch.device:
    """Join the other processes if torchrun started this one; returns the device that is this one's."""
    if "RANK" in os.environ:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def stop_processes() -> None:
    """Leave the group that `start_processes` joined, if it did."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Go on when every process has come here: what the main one wrote before is on disk then."""
    if dist.is_initialized():
        dist.barrier()


def is_main_process() -> bool:
    """Whether this process is the one that writes files."""
    return not dist.is_initialized() or dist.get_rank() == 0


def process_share(count: int) -> slice:
    """Which of the `count` examples of a batch belong to this process."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return slice(rank * count // world, (rank + 1) * count // world)


def all_reduce_gradients(model: nn.Module) -> None:
    """Sum the gradients over the processes. Each computed its share of one loss, so the sum is that loss's gradient."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def all_reduce_sum(value: torch.Tensor) -> float:
    """The sum of a scalar over the processes."""
    if dist.is_initialized():
        value = value.detach().clone()
        dist.all_reduce(value)
    return value.item()


def all_reduce_metrics(metrics: dict) -> dict:
    """The sum over the processes of each metric; one that a process lacks counts as nothing there."""
    if not dist.is_initialized():
        return metrics
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, metrics)
    total = {}
    for part in gathered:
        for name, metric in part.items():
            total[name] = total[name] + metric if name in total else metric
    return total


def shard(model: PaliGemmaForConditionalGeneration) -> None:
    """Spread the weights over the processes of torchrun, in place: for models that are too large for one device.

    Each process keeps its part of every weight. A layer's weights are put together for the moment it runs, and
    their gradients are averaged over the processes ("fully sharded", Zhao et al. 2023, "PyTorch FSDP"). So give each
    process its own examples, and take an optimiser that works element by element, such as AdamW: Muon needs whole
    matrices. `torch.distributed.checkpoint.state_dict.get_model_state_dict` puts the weights together to be saved.
    Raises RuntimeError where torch.distributed is not initialised.
    """
    from torch.distributed.device_mesh import init_device_mesh  # half a second, and hardly anybody needs it
    from torch.distributed.fsdp import fully_shard

    if not dist.is_initialized():
        raise RuntimeError(
            "shard found no process group, expected several processes: call torch.distributed.init_process_group "
            "first, and start the script with torchrun"
        )
    mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
    layers = [*model.vision_tower.vision_model.encoder.layers, *model.language_model.model.layers]
    for part in (*layers, model):  # the model last: it takes what is in no layer
        fully_shard(part, mesh=mesh)
