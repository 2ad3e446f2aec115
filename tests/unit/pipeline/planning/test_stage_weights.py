"""The weights of all stages together are the model."""

import pytest

from benchmarks.plan_memory import Case
from pipeline.model.formulas import parameter_count, whole
from pipeline.planning.stage_weights import share_elements, stages_of


@pytest.mark.parametrize("case", [Case(json="zero1_fp32", stages=2), Case(json="zero1_fp32", n_future_tokens=1)])
def test_stages_hold_the_model_once(case: Case) -> None:
    config, n_parameters = case.config, parameter_count(case.config.model)
    shares = [stage.share for stage in stages_of(config)]
    assert sum(share_elements(config.model, share, tensor_parallel_size=1) for share in shares) == n_parameters
    assert share_elements(config.model, whole(config.model), tensor_parallel_size=1) == n_parameters
