"""How torch's threads wait on a CPU; commands import this before torch.

OpenMP's threads spin while they wait for each other. On a computer with another busy program that makes
training ten times slower. Here they sleep after a short spin: as fast when nothing else runs, three times
slower next to a busy core. A value of the user's own stays.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
