"""Model FLOPs utilisation (MFU): the share of a GPU's peak that the operations of the network use.

The operations are those of convolutions, linear maps and attention; an update has three times those of the forward pass
(Chowdhery et al. 2022, PaLM, appendix B). Recomputed activations do not count.
"""

import re

import torch
from torch import nn

from residual.count import multiply_adds
from training.task import Task

PEAKS = {
    r"(B200|GB200)": 2250e12,
    r"H100 PCIe": 756e12,
    r"(H100|H200) NVL": 835e12,
    r"(H100|H200|GH200)": 989e12,
    r"H20": 148e12,
    r"A100": 312e12,
    r"A30": 165e12,
    r"A40": 149.7e12,
    r"A10G": 70e12,
    r"A10": 125e12,
    r"L40S": 362e12,
    r"L40": 181e12,
    r"L4": 121e12,
    r"RTX 4090": 165.2e12,
    r"RTX 3090": 71e12,
}
"""GPUs and their dense bf16 FLOP/s with float32 accumulation, without sparsity (data sheets of NVIDIA)"""


def peak_flops(name: str, bf16: bool) -> float | None:
    """The peak of the GPU of that name, as torch reports it; None if it is not known, or only a part of a GPU.

    In float32 that of TF32, in which convolutions are computed: half of that of bf16.
    """
    if re.search(r"\b(MIG|Laptop)\b", name):
        return None
    found = next((peak for kind, peak in PEAKS.items() if re.search(rf"\b{kind}\b", name)), None)
    return found if found is None or bf16 else found / 2


def seconds_at_peak(
    model: nn.Module, task: Task, shape: tuple[int, ...], device: torch.device, bf16: bool
) -> float | None:
    """Seconds that an image of an update would take one `device` at its peak; None if that is not known.

    `shape` is that of an image. A network that the meta device cannot compute is not counted.
    """
    peak = peak_flops(torch.cuda.get_device_name(device), bf16) if device.type == "cuda" else None
    if peak is None:
        return None
    try:
        count = multiply_adds(model, *task.example(torch.zeros(1, *shape, device="meta")))
    except (RuntimeError, TypeError):
        return None
    return 3 * 2 * count / peak
