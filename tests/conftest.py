"""What every test shares: one thread, and hypothesis without chance, deadlines or files."""

import torch
from hypothesis import settings

torch.set_num_threads(1)  # two threads on a small shared machine can be 20 times slower than one
settings.register_profile("mull", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("mull")
