"""Peaks of devices by the names that drivers report, against the makers' data sheets, typed in once more."""

import pytest

from pipeline.config.deepspeed import Precision
from pipeline.runtime.devices import peak_flops


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA A100-SXM4-40GB", 312, 19.5),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("A100-SXM4-40GB", 312, 19.5),  # older drivers
        ("NVIDIA A100-PCIE-40GB", 312, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 19.5),
        ("NVIDIA H100 80GB HBM3", 1979 / 2, 67),  # the sheet's figure is with sparsity
        ("NVIDIA H100 PCIe", 1513 / 2, 51),
        ("NVIDIA H100 NVL", 1671 / 2, 60),
        ("NVIDIA H200", 1979 / 2, 67),
        ("NVIDIA H200 NVL", 1671 / 2, 60),
        ("NVIDIA B200", 4500 / 2, 75),
        ("AMD Instinct MI300X", 1307.4, 163.4),
        ("AMD Instinct MI300X OAM", 1307.4, 163.4),
    ],
)
def test_peaks_are_the_data_sheets(name: str, bf16: float, fp32: float) -> None:
    assert peak_flops(name, precision="bf16") == pytest.approx(bf16 * 1e12, rel=0.001)
    assert peak_flops(name, precision="fp32") == pytest.approx(fp32 * 1e12, rel=0.001)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-80GB MIG 3g.40gb",  # slices
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "GRID A100-40C",
        "NVIDIA A100-SXM-64GB",  # a custom board with more cores
        "NVIDIA RTX A1000",  # names that contain another
        "NVIDIA A100X",
        "NVIDIA GH200 480GB",
        "NVIDIA GB200",
        "NVIDIA H20",
        "NVIDIA H800",
        "AMD Instinct MI300A",
        "AMD Instinct MI325X",
        "NVIDIA GeForce RTX 4090",
        "Tesla V100-SXM2-32GB",
        "cpu",
        "",
    ],
)
def test_an_unknown_device_has_no_peak(name: str, precision: Precision) -> None:
    assert peak_flops(name, precision=precision) is None
