"""Peak FLOP/s of known devices, by name: the denominator of utilisation. Needs no torch.

The figures are dense peaks from the makers' data sheets. NVIDIA's newer sheets print figures with structured sparsity,
which are halved here. Each precision has its own peak. Unless TF32 is enabled (torch does not by default), fp32
products run outside the tensor cores, many times slower: measured against the bf16 peak, an fp32 run would look idle.

A device that is not in the table has no utilisation. The peak of a similar device would be wrong: boards with the same
chip differ by up to a quarter, and a slice of one (MIG, vGPU) has an unknown part of it.

Sources, data sheets: "NVIDIA A100 Tensor Core GPU" (SXM and PCIe); "NVIDIA H100 Tensor Core GPU" (SXM and PCIe in its
first edition, SXM and NVL in the later one); "NVIDIA H200 Tensor Core GPU" (SXM and NVL); "NVIDIA Blackwell" (HGX B200:
4.5 PFLOP/s bf16 with sparsity, 75 TFLOP/s fp32); "AMD Instinct MI300X Accelerator".
"""

import re
from typing import NamedTuple

from pipeline.config.deepspeed import Precision


class _Peak(NamedTuple):
    """Dense peaks in TFLOP/s: bf16 on tensor (matrix) cores, fp32 without TF32."""

    bf16: float
    fp32: float


# Words in the device's name, as the driver reports it. The first row that fits counts.
_PEAKS: list[tuple[str, _Peak]] = [
    ("a100 sxm4", _Peak(312, 19.5)),
    ("a100 pcie", _Peak(312, 19.5)),
    ("h100 pcie", _Peak(756, 51)),
    ("h100 nvl", _Peak(835, 60)),
    ("h100 hbm3", _Peak(989, 67)),  # SXM, the only H100 with this kind of memory
    ("h200 nvl", _Peak(835, 60)),
    ("h200", _Peak(989, 67)),
    ("b200", _Peak(2250, 75)),
    ("mi300x", _Peak(1307.4, 163.4)),
]
_SLICES = {"mig", "grid"}


def peak_flops(device_name: str, *, precision: Precision) -> float | None:
    """Return the device's dense peak in FLOP/s, or None if it is not known.

    Args:
        device_name: from `torch.cuda.get_device_name`, such as "NVIDIA H100 80GB HBM3".
        precision: of the matrix products.
    """
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    if words & _SLICES:
        return None
    peaks = (peak for key, peak in _PEAKS if words.issuperset(key.split()))
    peak = next(peaks, None)
    return None if peak is None else getattr(peak, precision) * 1e12
