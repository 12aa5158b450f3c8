"""Muon, the optimiser of the toy: momentum whose every matrix is made orthogonal before it is a step.

In a narrow network that trains for a few hundred steps, a few directions dominate Adam's updates. Muon
replaces the singular values of each weight matrix's momentum by (about) 1, so all directions move at once
(Jordan et al., 2024). docs/experiments.md has the measured difference.
"""

import torch

from minltx.training.parallel import like_shard, to_full_tensor


def polynomial(a):
    """-4.7750 a + 2.0315 a a, Jordan's coefficients: with 3.4445 steep at 0, flat around 1."""
    return torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)


def orthogonalize(matrices, steps=5):
    """(..., n, m) -> nearly the nearest matrices with singular values near 1, by Newton-Schulz iterations:
    x <- (3.4445 + polynomial(x x^T)) x.

    Each multiplies x from the left by some p, so the next x x^T is p x x^T p. For a wide x it takes fewer
    products to iterate this small square matrix alone, and to multiply x once, at the end.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalize(matrices.mT, steps).mT
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    x, shape = x.reshape(-1, *x.shape[-2:]), x.shape
    if x.shape[-1] < 2 * x.shape[-2]:
        for _ in range(steps):
            x = torch.baddbmm(x, polynomial(x @ x.mT), x, beta=3.4445)
        return x.reshape(shape)
    a, product = x @ x.mT, torch.eye(x.shape[-2]).to(x)                                   # (., n, n), (n, n)
    for _ in range(steps):
        p = polynomial(a)
        p.diagonal(dim1=-2, dim2=-1).add_(3.4445)
        a, product = p @ a @ p, p @ product
    return (product @ x).reshape(shape)


class Muon(torch.optim.Optimizer):
    """Muon for weights of two or more axes, of which all but the first count as one.

    lr is the length of an update relative to an orthogonal matrix.
    """

    def __init__(self, parameters, lr=0.02, momentum=0.95, weight_decay=0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One step. `closure` is part of torch's interface and is not used."""
        for group in self.param_groups:
            same_shape = {}
            for p in group["params"]:
                if p.grad is not None:
                    if p not in self.state:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                    momentum = self.state[p]["momentum"]
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                    update = to_full_tensor(p.grad.lerp(momentum, group["momentum"])).flatten(1)
                    same_shape.setdefault(update.shape, []).append((p, update))
            # Many small products are slow: matrices of one shape go through one batch.
            for (rows, columns), pairs in same_shape.items():
                updates = orthogonalize(torch.stack([update for _, update in pairs]))
                for (p, _), update in zip(pairs, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    length = group["lr"] * max(1, rows / columns) ** 0.5
                    p.add_(like_shard(update.reshape(p.shape), p), alpha=-length)


def optimizers(modules, lr=0.02, adam_lr=3e-3, kind="muon"):
    """[Muon, AdamW]: Muon for the linear and convolutional weights of `modules`, AdamW for everything else:
    biases, tables, norms, embeddings, and matrices that are too narrow to have directions to balance.

    With kind = "adamw" only AdamW. Raises ValueError for another kind.
    """
    if kind not in ("muon", "adamw"):
        raise ValueError(f"unknown optimiser {kind!r}: use muon or adamw")
    if kind == "adamw":
        parameters = [p for module in modules for p in module.parameters()]
        return [torch.optim.AdamW(parameters, adam_lr, betas=(0.9, 0.99), weight_decay=0.01)]
    matrices = [m.weight for module in modules for m in module.modules()
                if isinstance(m, (torch.nn.Linear, torch.nn.Conv3d)) and min(m.weight.flatten(1).shape) > 16]
    known = {id(p) for p in matrices}
    others = [p for module in modules for p in module.parameters() if id(p) not in known]
    return [Muon(matrices, lr), torch.optim.AdamW(others, adam_lr, betas=(0.9, 0.99), weight_decay=0.0)]
