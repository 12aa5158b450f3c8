"""The chapters compiled for a GPU, block by block: the same parameters, the same numbers up to rounding.

    model = accelerate(model.to("cuda", torch.bfloat16))

On a GPU the matrix products are fast, and an eager network spends half of its time on everything between
them: each norm, modulation and rotation reads and writes the whole tensor. torch.compile fuses these passes.
docs/speed.md has the measurements.
"""

import torch
from torch import nn

KINDS = 64      # how many shapes and kinds of block one function may be compiled for; torch's default is 8


def blocks_of(network):
    """The parts of a network that run in sequence: each is compiled, recomputed and gathered as one."""
    return [block for m in network.modules() for name in ("blocks", "down_blocks", "up_blocks")
            for block in getattr(m, name, ())]


def compile_blocks(network):
    """Compile every block in place, when it is first called, and return the network.

    Every size of the input is compiled for itself, since kernels for unknown sizes are slower. Equal blocks
    share their code.
    """
    import torch._dynamo.config as dynamo       # seconds that only those wait who compile

    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
    setattr(dynamo, limit, max(KINDS, getattr(dynamo, limit)))
    for block in blocks_of(network):
        block.compile(dynamic=False)
    return network


def accelerate(model):
    """Prepare a model (LTXVideo, ToyModel, DiT or VideoVAE) for inference on a GPU, in place, and return it.

    Its blocks are compiled. Weights of 3-D convolutions get the memory layout channels_last_3d, in which
    cuDNN computes anyway: otherwise it converts every input and output.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
    return compile_blocks(model)
