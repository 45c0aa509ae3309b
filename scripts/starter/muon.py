"""Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/): momentum whose steps are made orthogonal.

PyTorch's own iterates in bfloat16, which a CPU without AVX-512 multiplies 50 times slower than fp32; this one
iterates in the type of the weights, with all matrices of one shape together.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


def orthogonal(updates: Tensor) -> Tensor:
    """`[matrices, rows, columns]`: each matrix with its singular values brought near 1 (Newton-Schulz, quintic)."""
    a, b, c = COEFFICIENTS
    tall = updates.shape[1] > updates.shape[2]
    x = updates.mT if tall else updates
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For weight matrices `[out, in]`; rates are those of PyTorch's `Muon` with its default adjustment."""

    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float = 0.01, momentum: float = 0.95):
        super().__init__(matrices, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for matrix in group["params"]:
                by_shape[matrix.shape].append(matrix)
            for (rows, columns), matrices in by_shape.items():
                grads = torch.stack([m.grad for m in matrices])
                moments = torch.stack([self.state[m].get("momentum", torch.zeros_like(m)) for m in matrices])
                moments.lerp_(grads, 1 - group["momentum"])
                updates = orthogonal(grads.lerp(moments, group["momentum"]))
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                for matrix, moment, update in zip(matrices, moments, updates):
                    self.state[matrix]["momentum"] = moment
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)
