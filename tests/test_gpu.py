"""What only a GPU can show: half precision, compiled blocks, attention kernels, training. Skipped if none.

The networks are small, and their widths are what the kernels want (heads of 64 channels).
"""

from dataclasses import replace

import pytest
import torch

from minltx.dit import DiTConfig
from minltx.vae import VAEConfig
from minltx.workshop import bench_parts, stopwatch
from minltx.workshop.bench_parts import PRESETS, Setup, build_dit, build_vae, clip, token_inputs, train_part

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

DIT = DiTConfig(latent_channels=16, width=256, depth=2, heads=4, text_width=64)
VAE = VAEConfig(16, 4, 32, (("res", 1), ("down", (1, 2, 2), 32), ("res", 1), ("down", (2, 1, 1), 64),
                            ("res", 1), ("down", (2, 2, 2), 64), ("res", 1), ("down", (2, 2, 2), 128),
                            ("res", 1)),
                64, (("res", 1), ("up", (2, 2, 2), 32), ("res", 1), ("up", (2, 2, 2), 32), ("res", 1),
                     ("up", (2, 2, 2), 32), ("res", 1)))
SIZE = (17, 128, 192)
PRESET = replace(PRESETS["quarter"], dit=DIT, vae=VAE, dit_size=SIZE, vae_size=SIZE, words=32)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Convolutions in float32 are float32: cuDNN would round their inputs to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def setup(device="cuda", dtype=torch.float32, **more):
    return Setup(PRESET, torch.device(device), dtype, **more)


def apart(a, b):
    """The distance of two tensors, relative to the second."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return ((a - b).norm() / b.norm()).item()


def as_dtype(tensors, dtype):
    """Inputs in another precision; times and coordinates stay as they are."""
    tokens, t, where, text, mask = tensors
    return tokens.to(dtype), t, where, text.to(dtype), mask


@torch.inference_mode()
def test_half_precision_of_the_transformer():
    """From the same weights and inputs, such as bfloat16 can hold: only the arithmetic differs."""
    half = setup(dtype=torch.bfloat16)
    dit, inputs = build_dit(half), token_inputs(half)
    output = dit.forward_tokens(*inputs)
    exact = dit.float().forward_tokens(*as_dtype(inputs, torch.float32))
    assert exact.isfinite().all() and exact.std() > 0.05
    assert apart(output, exact) < 1e-2


@torch.inference_mode()
def test_half_precision_of_the_autoencoder():
    half = setup(dtype=torch.bfloat16)
    vae, video, t = build_vae(half), clip(half), torch.tensor([0.05], device=half.device)
    mean = vae.encode(video)[0]
    output = vae.decode(mean, t)
    vae.float()
    assert apart(mean, vae.encode(video.float())[0]) < 1e-2
    assert apart(output, vae.decode(mean.float(), t)) < 1e-2


@torch.inference_mode()
def test_the_device_computes_what_the_cpu_does():
    dit, inputs = build_dit(setup()), token_inputs(setup())
    on_gpu = dit.forward_tokens(*inputs)
    on_cpu = dit.cpu().forward_tokens(*(x.cpu() for x in inputs))
    assert apart(on_gpu, on_cpu) < 1e-3


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
@torch.inference_mode()
def test_compiled_blocks_equal_eager_ones(dtype, tolerance):
    inputs = token_inputs(setup(dtype=dtype))
    eager, compiled = (build_dit(setup(dtype=dtype, compiled=flag)).forward_tokens(*inputs)
                       for flag in (False, True))
    assert apart(compiled, eager) < tolerance
    video = clip(setup(dtype=dtype))
    eager, compiled = (build_vae(setup(dtype=dtype, compiled=flag)).encode(video)[0]
                       for flag in (False, True))
    assert apart(compiled, eager) < tolerance


@pytest.mark.parametrize("name, mark, compiled", [
    ("flash", "flash_attention", False), ("cudnn", "cudnn_attention", False),
    ("efficient", "efficient_attention", False), ("math", "attention_math", False),
    ("flash", "flash_attention", True), ("cudnn", "cudnn_attention", True)])
@torch.inference_mode()
def test_the_kernel_that_was_asked_for_is_used(name, mark, compiled):
    """In every block's self-attention; the caption's mask may send the other attention elsewhere."""
    torch._dynamo.reset()
    half = setup(dtype=torch.bfloat16, compiled=compiled)
    dit, inputs = build_dit(half), token_inputs(half)
    with stopwatch.attention_by(name):
        used = stopwatch.attention_used(lambda: dit.forward_tokens(*inputs))
    assert sum(count for kernel, count in used.items() if mark in kernel) >= DIT.depth, used


def test_a_training_step_as_on_the_cpu(monkeypatch):
    """The same weights, noise and times: the same first loss; in bfloat16 nearly."""
    weights = build_dit(setup("cpu")).state_dict()
    torch.manual_seed(0)
    latent, text = torch.randn(1, 16, 3, 4, 6), torch.randn(1, 32, 64)
    losses = {}
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.bfloat16)):
        def given(s, *args, **more):
            dit = build(s, *args, **more)
            dit.load_state_dict(weights)
            return dit

        build = build_dit
        with monkeypatch.context() as m:
            m.setattr(bench_parts, "build_dit", given)
            m.setattr(bench_parts, "noise", lambda s, *shape, dtype=None: (
                latent if len(shape) == 5 else text).to(s.device))
            part = train_part(setup(device, dtype))
        losses[device, dtype] = part.work().item()
        assert part.work().isfinite()
    exact = losses["cpu", torch.float32]
    assert losses["cuda", torch.float32] == pytest.approx(exact, rel=1e-3)
    assert losses["cuda", torch.bfloat16] == pytest.approx(exact, rel=2e-2)


def test_checkpointing_saves_memory_and_changes_no_loss():
    losses, peaks = [], []
    for checkpointing in (False, True):
        part = train_part(setup(checkpointing=checkpointing))
        part.work()
        peaks.append(stopwatch.peak_memory(part.work, torch.device("cuda"))[0])
        losses.append(part.work().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and peaks[1] < peaks[0]
