"""The weights of each pipeline stage: the balanced stages of a model, and the number of elements on one rank."""

from functools import cache

from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config
from pipeline.model.formulas import Share, head_parameters, layer_parameters
from pipeline.model.partition import Stage, balanced_stages


@cache
def stages_of(config: Config) -> tuple[Stage, ...]:
    """Return the balanced stages. Cached, because cutting a model takes tenths of a second."""
    return tuple(balanced_stages(config))


def share_elements(model: ModelConfig, share: Share, *, tensor_parallel_size: int) -> int:
    """Return the number of weight elements on a rank that holds `share`, before ZeRO divides them."""
    matrix = model.vocab_size * model.dim

    def divided(parameters: int) -> int:  # tensor parallelism leaves the norms whole
        return (parameters - 2 * model.dim) // tensor_parallel_size + 2 * model.dim

    layers = len(share.trunk_layers) * divided(layer_parameters(model))
    head = divided(head_parameters(model)) if model.head_type == "transformer" else head_parameters(model)
    outputs = model.n_unembeddings * matrix + model.dim if share.unembedding else 0
    return matrix * share.embedding + layers + len(share.heads) * head + outputs
