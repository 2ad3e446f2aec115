"""The memory that decoding needs on its device, checked before it is allocated.

Linux lets a program allocate more memory than the machine has, and kills it once it uses that memory. So the need is
computed first, and the error says which options to change.
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
    """The sizes of weights and caches, from the model and the options of the command."""

    config: ModelConfig
    device: str
    dtype: str
    max_batch_size: int
    max_seq_len: int
    n_heads_used: int

    def check(self) -> None:
        """Check that weights and caches fit.

        Raises:
            UserError: they are larger than the free memory of the device.
        """
        bytes_per_element, left = torch_dtype(self.dtype).itemsize, _bytes_left(self.device)
        weights = parameter_count(self.config) * bytes_per_element
        caches = self._cached_elements * bytes_per_element
        if weights + caches > left:
            raise UserError(
                f"not enough memory: the weights take {weights / 1e9:.1f} GB in {self.dtype} and the caches "
                f"{caches / 1e9:.1f} GB, but {self.device} has {left / 1e9:.1f} GB left; {self._advice}"
            )

    @contextmanager
    def shortage_explained(self) -> Iterator[None]:
        """Explain errors of the memory allocator inside the `with` block.

        Raises:
            UserError: the memory was not enough; says which options to change.
        """
        import torch

        try:
            yield
        except RuntimeError as error:
            # only the error of a GPU has its own type
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
