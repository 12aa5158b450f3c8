"""Moving digits: clips whose right answer is known, and a model small enough to train on a laptop.

    from minltx.toy import load_toy
    video = load_toy().generate(["a red 7 moving left"], seeds=[0])     # (1, 3, 17, 32, 32) in [-1, 1]
"""


def load_toy(path=None):
    """The shipped toy, or the one in a run's model.pt -> ToyModel, ready to sample. Raises ValueError as
    `toy.model.load_checkpoint` does."""
    from minltx.toy.model import SHIPPED, load_checkpoint

    return load_checkpoint(path or SHIPPED)[0]
