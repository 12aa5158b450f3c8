"""What only a GPU can show: half precision, compiled blocks, attention kernels, training. Skipped elsewhere.

The networks are small, and their widths are those that the kernels need (heads of 64 channels).
"""

from dataclasses import replace

import pytest
import torch

from minltx.bench import parts, timing
from minltx.bench.parts import PRESETS, Setup, build, clip, token_inputs, train_part
from minltx.dit import DiT, DiTConfig
from minltx.fast_cpu import accelerate
from minltx.vae import VAEConfig, VideoVAE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SMALL_DIT = DiTConfig(latent_channels=16, width=256, depth=2, heads=4, text_width=64)
SMALL_VAE = VAEConfig(16, 4, 32, (("res", 1), ("down", (1, 2, 2), 32), ("res", 1), ("down", (2, 1, 1), 64),
                                  ("res", 1), ("down", (2, 2, 2), 64), ("res", 1), ("down", (2, 2, 2), 128),
                                  ("res", 1)),
                      64, (("res", 1), ("up", (2, 2, 2), 32), ("res", 1), ("up", (2, 2, 2), 32), ("res", 1),
                           ("up", (2, 2, 2), 32), ("res", 1)))
SIZE = (17, 128, 192)
PRESET = replace(PRESETS["quarter"], dit=SMALL_DIT, vae=SMALL_VAE, dit_size=SIZE, vae_size=SIZE, words=32)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Convolutions in float32 are float32: cuDNN would round their inputs to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def setup(device="cuda", dtype=torch.float32, **more):
    return Setup(PRESET, torch.device(device), dtype, **more)


def build_dit(setup, dtype=None):
    return build(DiT, setup.preset.dit, setup, dtype)


def build_vae(setup):
    return build(VideoVAE, setup.preset.vae, setup)


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


@torch.inference_mode()
def test_accelerating_changes_nothing_on_a_gpu():
    dit, inputs = build_dit(setup()), token_inputs(setup())
    plain = dit.forward_tokens(*inputs)
    assert torch.equal(accelerate(dit).forward_tokens(*inputs), plain)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
@torch.inference_mode()
def test_compiled_blocks_equal_eager_ones(dtype, tolerance):
    inputs = token_inputs(setup(dtype=dtype))
    eager, compiled = (build_dit(setup(dtype=dtype, compiled=flag)).forward_tokens(*inputs)
                       for flag in (False, True))
    assert apart(compiled, eager) < tolerance
    video, t = clip(setup(dtype=dtype)), torch.tensor([0.05], device="cuda")
    eager, compiled = (build_vae(setup(dtype=dtype, compiled=flag)) for flag in (False, True))
    latent = eager.encode(video)[0]
    assert apart(compiled.encode(video)[0], latent) < tolerance
    assert apart(compiled.decode(latent, t), eager.decode(latent, t)) < tolerance


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
    with timing.attention_by(name):
        used = timing.attention_used(lambda: dit.forward_tokens(*inputs))
    assert sum(count for kernel, count in used.items() if mark in kernel) >= SMALL_DIT.depth, used


def test_a_training_step_as_on_the_cpu(monkeypatch):
    """The same weights, noise and times: the same first loss; in bfloat16 nearly."""
    weights = build_dit(setup("cpu")).state_dict()
    torch.manual_seed(0)
    latent, text = torch.randn(1, 16, 3, 4, 6), torch.randn(1, 32, 64)
    losses = {}

    def same_weights(network, config, setup, dtype=None):
        dit = build(network, config, setup, dtype)
        dit.load_state_dict(weights)
        return dit

    monkeypatch.setattr(parts, "build", same_weights)
    monkeypatch.setattr(parts, "noise", lambda s, *shape, dtype=None: (
        latent if len(shape) == 5 else text).to(s.device))
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.bfloat16)):
        part = train_part(setup(device, dtype))
        losses[device, dtype] = part.work(part.network).item()
        assert part.work(part.network).isfinite()
    exact = losses["cpu", torch.float32]
    assert losses["cuda", torch.float32] == pytest.approx(exact, rel=1e-3)
    assert losses["cuda", torch.bfloat16] == pytest.approx(exact, rel=2e-2)


def test_checkpointing_saves_memory_and_changes_no_loss():
    """Of many tokens and four blocks, so that the peak is in the blocks and not in the optimiser's step."""
    preset = replace(PRESET, dit=replace(SMALL_DIT, depth=4), dit_size=(41, 512, 768))
    losses, peaks = [], []
    for checkpointing in (False, True):
        part = train_part(replace(setup(checkpointing=checkpointing), preset=preset))
        part.work(part.network)
        peaks.append(timing.peak_memory(lambda: part.work(part.network), torch.device("cuda")))
        losses.append(part.work(part.network).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and peaks[1] < peaks[0]
