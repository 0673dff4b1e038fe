"""One thread: more only contend over tensors this small."""

import torch

torch.set_num_threads(1)
