"""torch.compile over the transformer layers (`train.compile`)."""

import warnings

import torch
from torch import nn

from common.command_line import UserError
from pipeline.model.layers import TransformerBlock


def compile_layers(module: nn.Module) -> None:
    """Let torch.compile fuse each transformer layer.

    The layers' forwards, and not the modules: that would compile ZeRO-3's hooks too. All layers share one graph;
    `fullgraph` makes it an error where it could not be one.
    """
    for layer in module.modules():
        if isinstance(layer, TransformerBlock):
            layer.forward = torch.compile(layer.forward, fullgraph=True, dynamic=False)  # type: ignore[method-assign]


def check_compiler() -> None:
    """Check that torch.compile finds what it needs on the CPU.

    Raises:
        UserError: there is no C++ compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise UserError(f"train.compile=true needs a C++ compiler on the CPU ({error}); install g++") from error
    warnings.filterwarnings("ignore", message="Torchinductor does not support code generation for complex")
