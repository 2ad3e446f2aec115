"""What decoding needs of a device's memory, and a word of advice where that is more than there is.

Linux grants a program more memory than the machine has, and kills it when it comes to use it; so what is needed is
counted first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.command_line import UserError
from pipeline.config.model import ModelConfig
from pipeline.model.formulas import head_inputs, parameter_count
from pipeline.weights.formats.export import torch_dtype


@dataclass(frozen=True, kw_only=True)
class DecodingMemory:
    """Weights and caches: their sizes follow from the model, and from what the command line asks for."""

    config: ModelConfig
    device: str
    dtype: str
    max_batch_size: int
    max_seq_len: int
    n_heads_used: int

    def check(self) -> None:
        """Refuse what cannot fit.

        Raises:
            UserError: weights and caches are larger than what is left on the device.
        """
        bytes_per_element, left = torch_dtype(self.dtype).itemsize, _bytes_left(self.device)
        weights = parameter_count(self.config) * bytes_per_element
        caches = self._cached_elements * bytes_per_element
        if weights + caches > left:
            raise UserError(
                f"not enough memory: the weights take {weights / 1e9:.1f} GB in {self.dtype} and the caches "
                f"{caches / 1e9:.1f}, and {self.device} has {left / 1e9:.1f} left; {self._advice}"
            )

    @contextmanager
    def shortage_told(self) -> Iterator[None]:
        """Turn what the allocator raises within into a UserError."""
        import torch

        try:
            yield
        except RuntimeError as error:
            # a GPU's error has a type of its own, the CPU's has none
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise UserError(f"not enough memory on {self.device}; {self._advice}") from error
            raise

    @property
    def _cached_elements(self) -> int:
        n_layers = self.config.n_trunk_layers + len(head_inputs(self.config, self.n_heads_used))
        per_token = 2 * n_layers * self.config.kv_heads * self.config.head_dim  # keys and values
        return self.max_batch_size * self.max_seq_len * per_token

    @property
    def _advice(self) -> str:
        ways = [f"lower --max_batch_size ({self.max_batch_size}) or --max_seq_len ({self.max_seq_len})"]
        if self.dtype == "fp32":
            ways.append("use --dtype bf16")
        if self.n_heads_used > 1:
            ways.append(f"use fewer heads (--n_heads_used {self.n_heads_used})")
        return ", or ".join(ways)


def _bytes_left(device: str) -> int:
    import psutil
    import torch

    is_cuda = torch.device(device).type == "cuda"
    return torch.cuda.mem_get_info(device)[0] if is_cuda else psutil.virtual_memory().available
