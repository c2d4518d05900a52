"""Sets what torch leaves open on CUDA, for the server and its benches alike."""

import torch


def configure_cuda() -> None:
    """Lets cuDNN choose its convolutions by measurement, for the whole process."""
    torch.backends.cudnn.benchmark = True
