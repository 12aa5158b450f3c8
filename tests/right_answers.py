"""Correct answers to the questions of the assignments, written in other ways than the package's own.

{task: [source]}, with the helpers of `wrong_answers.py`. `tests/test_checks.py` judges them all.
"""

RIGHT = {
    "A1.1": [
        "lambda x0, noise, t: x0 + along(t, x0) * (noise - x0)",
        "lambda x0, noise, t: torch.stack([(1 - s) * a + s * b for a, b, s in zip(x0, noise, t)])",
        "lambda x0, noise, t: torch.einsum('b...,b->b...', x0, 1 - t) + torch.einsum('b...,b->b...', "
        "noise, t)",
        "lambda x0, noise, t: torch.lerp(x0, noise, along(t, x0).expand_as(x0))",
        "lambda x0, noise, t: ((1 - t) * x0.movedim(0, -1) + t * noise.movedim(0, -1)).movedim(-1, 0)",
        "def answer(x0, noise, t):\n"
        "    while t.ndim < x0.ndim:\n"
        "        t = t.unsqueeze(-1)\n"
        "    return x0 * (1 - t) + noise * t\n",
    ],
    "A1.2": [
        "lambda x0, noise: torch.sub(noise, x0)",
        "lambda x0, noise: -(x0 - noise)",
        "lambda x0, noise: noise.clone().sub_(x0)",
    ],
    "A1.3": [
        "lambda z, v, t: torch.addcmul(z, along(t, z).expand_as(z), v, value=-1)",
        "lambda z, v, t: torch.stack([a - s * b for a, b, s in zip(z, v, t)])",
    ],
    "A1.4": [
        "lambda v, target, weight: F.mse_loss(v[weight.squeeze(-1).bool()], "
        "target[weight.squeeze(-1).bool()])",
        "lambda v, target, weight: (((v - target) ** 2).mean(-1, keepdim=True) * weight).sum() / "
        "weight.sum()",
        "lambda v, target, weight: ((v - target) ** 2 * weight).sum() / (weight.sum() * v.shape[-1])",
        "lambda v, target, weight: torch.masked_select((v - target).square(), weight == 1).mean()",
    ],
    "A1.5": [
        "lambda t, tokens: torch.sigmoid(torch.log(t / (1 - t)) + shift_mu(tokens))",
        "lambda t, tokens: 1 / (1 + math.exp(-shift_mu(tokens)) * (1 - t) / t)",
        "lambda t, tokens: torch.where(t == 1, t, torch.sigmoid(torch.logit(t) + shift_mu(tokens)))",
    ],
    "A1.6": [
        "def answer(velocity, z, schedule):\n"
        "    for i in range(len(schedule) - 1):\n"
        "        t = torch.full((len(z),), schedule[i].item(), dtype=z.dtype, device=z.device)\n"
        "        z = z + (schedule[i + 1] - schedule[i]) * velocity(z, t)\n"
        "    return z\n",
        "def answer(velocity, z, schedule):\n"
        "    z = z.clone()\n"
        "    for a, b in zip(schedule.tolist(), schedule.tolist()[1:]):\n"
        "        z = z - (a - b) * velocity(z, z.new_full((len(z),), a))\n"
        "    return z\n",
        "def answer(velocity, z, schedule):\n"
        "    for dt, t in zip(schedule.diff(), schedule):\n"
        "        z = z + dt * velocity(z, t.repeat(z.shape[0]))\n"
        "    return z\n",
    ],
    "A1.7": [
        "lambda net, x0, noise, t: F.mse_loss(net(interpolate(x0, noise, t), t), noise - x0)",
        "lambda net, x0, noise, t: ((noise - x0 - net(x0 + t[:, None] * (noise - x0), t)) ** 2).mean()",
    ],
    "A2.1": [
        "lambda x, p: F.pixel_unshuffle(x.mT.transpose(1, 2), p).transpose(1, 2).mT",
        "lambda x, p: torch.stack([x[..., r::p, q::p] for q in range(p) for r in range(p)], 2).flatten(1, 2)",
        "lambda x, p: x.unfold(3, p, p).unfold(4, p, p).permute(0, 1, 6, 5, 2, 3, 4).flatten(1, 3)",
    ],
    "A2.2": [
        "lambda n: (n + 7) // 8",
        "lambda n: 1 + int((n - 1) / 8)",
        "lambda n: len(range(0, n, 8))",
        "lambda n: math.ceil(n / 8)",
    ],
    "A2.3": [
        "lambda x: torch.cat([x[:, :, :1].repeat(1, 1, 2, 1, 1), x], dim=2)",
        "lambda x: x[:, :, [0, 0] + list(range(x.shape[2]))]",
        "lambda x: torch.cat([x.narrow(2, 0, 1).expand(-1, -1, 2, -1, -1), x], 2)",
    ],
    "A2.4": [
        "lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-8)",
        "lambda x: F.rms_norm(x.movedim(1, -1), (x.shape[1],), eps=1e-8).movedim(-1, 1)",
    ],
    "A2.5": [
        "lambda m, lv: torch.mean(-0.5 * (1 + lv - m ** 2 - lv.exp()))",
        "lambda m, lv: 0.5 * (m.square().mean() + (lv.exp() - 1 - lv).mean())",
        "lambda m, lv: torch.distributions.kl_divergence(torch.distributions.Normal(m, (lv / "
        "2).exp(), validate_args=False), torch.distributions.Normal(torch.zeros_like(m), "
        "torch.ones_like(m), validate_args=False)).mean()",
    ],
    "A2.6": [
        "lambda z, n, s, m, d: torch.lerp(z, n, s) * d.view(-1, 1, 1, 1) + m.view(-1, 1, 1, 1)",
        "lambda z, n, s, m, d: ((z + s * (n - z)).movedim(1, -1) * d + m).movedim(-1, 1)",
    ],
    "A2.7": [
        "lambda x, p: F.pixel_shuffle(x.mT.transpose(1, 2), p).transpose(1, 2).mT",
    ],
    "A3.1": [
        "lambda f, fps: torch.clamp((f - 1) * 8 + 1, min=0) / fps",
        "lambda f, fps: torch.relu(8 * f - 7) * (1 / fps)",
        "lambda f, fps: torch.where(f > 0, 8 * f - 7, torch.zeros_like(f)) / fps",
    ],
    "A3.2": [
        "lambda p, n, k: (p * 2 - 1).unsqueeze(1) * torch.logspace(0, math.log10(k), n, device=p.device, "
        "dtype=p.dtype) * math.pi / 2",
        "lambda p, n, k: torch.stack([(2 * p - 1) * math.pi / 2 * k ** (i / (n - 1)) for i in range(n)], 1)",
        "lambda p, n, k: torch.outer(2 * p - 1, math.pi / 2 * torch.exp(math.log(k) * "
        "torch.arange(n).to(p) / (n - 1)))",
    ],
    "A3.3": [
        "lambda x, c, s: x * c + turned(x) * s",
        "lambda x, c, s: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, "
        "2)).contiguous()) * torch.complex(c, s)[..., ::2]).flatten(-2)",
        "def answer(x, c, s):\n"
        "    out = torch.empty_like(x)\n"
        "    out[..., 0::2] = x[..., 0::2] * c[..., 0::2] - x[..., 1::2] * s[..., 0::2]\n"
        "    out[..., 1::2] = x[..., 1::2] * c[..., 1::2] + x[..., 0::2] * s[..., 1::2]\n"
        "    return out\n",
    ],
    "A3.4": [
        "lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-6)",
        "lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6) ** -0.5",
    ],
    "A3.5": [
        "lambda q, k, v, h: join(F.scaled_dot_product_attention(*(heads(x, h) for x in (q, k, v))))",
        "lambda q, k, v, h: torch.einsum('bhnm,bmhd->bnhd', torch.einsum('bnhd,bmhd->bhnm', "
        "q.unflatten(-1, (h, -1)), k.unflatten(-1, (h, -1))).div((q.shape[-1] // h) ** "
        "0.5).softmax(-1), v.unflatten(-1, (h, -1))).flatten(2)",
    ],
    "A3.6": [
        "lambda x, a, b: torch.addcmul(a.expand_as(x), norm(x), 1 + b)",
        "lambda x, a, b: norm(x) + norm(x) * b + a",
    ],
    "A3.7": [
        "lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=((m - 1) * 10000.0)[:, None])",
        "lambda q, k, v, m: (scores(q, k) + (m[:, None] - 1) * 1e4).softmax(-1) @ v",
        "lambda q, k, v, m: scores(q, k).sub(10000.0 * (1 - m).unsqueeze(1)).softmax(dim=2).matmul(v)",
    ],
    "A4.1": [
        "lambda a, b, s: a.lerp(b, s)",
        "lambda a, b, s: (1 - s) * a + s * b",
    ],
    "A4.2": [
        "lambda t, s: (torch.minimum(torch.full_like(s, t), 1 - s)[..., 0], ~(1 - s <= t - 1e-6))",
        "lambda t, s: ((1 - s).squeeze(-1).clamp(max=t), (1 - s) > t - 1e-6)",
    ],
    "A4.3": [
        "def answer(velocity, z, schedule, strength):\n"
        "    for t, n in zip(schedule[:-1].tolist(), schedule[1:].tolist()):\n"
        "        own, moves = token_times(t, strength)\n"
        "        z = z + moves * (n - t) * velocity(z, own)\n"
        "    return z\n",
        "def answer(velocity, z, schedule, strength):\n"
        "    strength = strength.expand(len(z), -1, -1)\n"
        "    for i in range(len(schedule) - 1):\n"
        "        own, moves = token_times(schedule[i].item(), strength)\n"
        "        step = (schedule[i + 1] - schedule[i]) * velocity(z, own)\n"
        "        z = torch.where(moves, z + step, z)\n"
        "    return z\n",
    ],
    "A4.4": [
        "lambda n, N: F.pad(shift_times(torch.linspace(1, 1 / n, n).double(), N, terminal=0.1), (0, "
        "1)).float()",
        "lambda n, N: torch.cat([shift_times(torch.arange(n, 0, -1, dtype=torch.float64) / n, N, "
        "0.1).float(), torch.zeros(1)])",
    ],
    "A4.5": [
        "lambda s, t: torch.cat([torch.full_like(s[:1], t), s[s < t - 1e-6]])",
        "lambda s, t: torch.tensor([t] + [x for x in s.tolist() if x < t - 1e-6], dtype=s.dtype, "
        "device=s.device)",
    ],
    "A4.6": [
        "lambda net, x, n, t, g: loss(net, x, n, free(t, g), free(t, g), 1 - g)",
        "lambda net, x, n, t, g: ((net(torch.where(g.bool(), x, x + t[:, None, None] * (n - x)), "
        "torch.where(g.bool(), 0, t[:, None, None])[..., 0]) - (n - x)) ** 2)[(g == "
        "0).expand_as(x)].mean()",
    ],
    "A5.1": [
        "lambda a, b: interval([x - y for x, y in zip(a, b)], T975[len(a) - 1])",
        "def answer(a, b):\n"
        "    d = torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)\n"
        "    h = T975[len(d) - 1] * d.std() / len(d) ** 0.5\n"
        "    return d.mean(), d.mean() - h, d.mean() + h\n",
        "def answer(a, b):\n"
        "    import numpy as np\n"
        "    d = np.array(a) - np.array(b)\n"
        "    h = T975[len(d) - 1] * d.std(ddof=1) / np.sqrt(len(d))\n"
        "    return d.mean(), d.mean() - h, d.mean() + h\n",
    ],
    "A5.2": [
        "def answer(p):\n"
        "    n = len(p)\n"
        "    s = sorted(p)\n"
        "    return [min(1.0, max((n - i) * s[i] for i in range(s.index(x) + 1))) for x in p]\n",
        "def answer(p):\n"
        "    import numpy as np\n"
        "    p = np.array(p)\n"
        "    o = p.argsort()\n"
        "    q = np.minimum(1, np.maximum.accumulate(p[o] * (len(p) - np.arange(len(p)))))\n"
        "    r = np.empty(len(p))\n"
        "    r[o] = q\n"
        "    return r.tolist()\n",
    ],
    "A5.3": [
        "lambda low, high, more: 'cannot be told' if low * high <= 0 else 'holds' if (low > 0) == "
        "more else 'does not'",
    ],
    "A5.4": [
        "lambda s, e: next((n for n in range(2, 21) if T975[n - 1] * s / math.sqrt(n) <= e), None)",
    ],
}
