"""Named ranges of a training step, which a trace of torch's profiler shows.

The model, the data loader and the engine open a range around each part of their work. `monitoring/trace.py` reads from
a trace how long each part took.
"""

from torch.profiler import record_function

PREFIX = "train: "  # distinguishes our ranges from others in a trace
STEP, GRADIENTS, OPTIMIZER = "step", "gradients", "optimizer"


def profiler_range(name: str) -> record_function:
    """Return a context manager that marks a part of the step, such as "data", "trunk", "head 1" or "unembedding".

    It records nothing while no profiler runs.
    """
    return record_function(PREFIX + name)
