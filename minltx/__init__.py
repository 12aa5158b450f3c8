"""minltx: LTX-Video in small, readable PyTorch files. The modules of this folder are its chapters."""

__version__ = "0.5.1"
