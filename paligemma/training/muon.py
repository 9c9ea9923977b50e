"""Muon: momentum whose matrices are orthogonalised before they are applied.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"
(https://kellerjordan.github.io/posts/muon). Coefficients, momentum and the adjustment of the learning rate are those
of `torch.optim.Muon` (torch/optim/_muon.py) and of its defaults. That one computes in bfloat16, which a processor
without bfloat16 instructions, as most laptops have, does 20 to 50 times more slowly than float32; here it is float32
everywhere. The two differ by bfloat16's rounding, and a state of one can be loaded into the other.
"""

from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic a x + b x^3 + c x^5, chosen for its steep slope at 0


@torch.no_grad()
def orthogonalize(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The orthogonal matrix near `matrix` [M, N] by Newton-Schulz iteration: U V^T where matrix = U S V^T. float32.

    Each step applies the odd polynomial a x + b x^3 + c x^5 to every singular value and leaves U and V alone, with
    matrix products only. Five steps bring every singular value of more than 0.002 of the Frobenius norm to between
    0.68 and 1.21, which is near enough to 1 to train with.
    """
    a, b, c = COEFFICIENTS
    x = matrix.float()
    if matrix.shape[0] > matrix.shape[1]:  # the Gram matrix x x^T is smaller along the shorter side
        x = x.T
    x = x / x.norm().clamp(min=1e-7)  # Frobenius norm 1, so no singular value is above 1
    for _ in range(steps):
        gram = x @ x.T  # x x^T has the squares of the singular values
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a x + (b G + c G^2) x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Muon for matrices [out, in], with Nesterov momentum and decoupled weight decay; AdamW is for all the rest.

    An orthogonal update changes the output equally in all directions, where the gradient's few large singular values
    would drown the others. Raises ValueError for a parameter that is not a matrix.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(
                        f"a parameter has the shape {list(parameter.shape)}, expected a matrix: Muon orthogonalises "
                        "matrices only, so give AdamW the others"
                    )

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in (p for p in group["params"] if p.grad is not None):
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                average = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                update = orthogonalize(parameter.grad.lerp(average, momentum))  # Nesterov: one step ahead
                rows, columns = parameter.shape
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-lr * max(1, rows / columns) ** 0.5)
