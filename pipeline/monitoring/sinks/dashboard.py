"""TensorBoard's pages besides a run's curves; all of it depends on the config alone.

layout            the custom-scalars page: all heads in one chart, for training and for validation
hyperparameters   the page that compares runs: some of their fields, beside the losses that they reached
config_text       every field of the resolved config, as text
"""

from typing import Any

import yaml

from pipeline.config.schema import Config, LogConfig

Layout = dict[str, dict[str, tuple[str, list[str]]]]

# TensorBoard's page shows tags in alphabetical order, so it opens on data/wait_s; this address has the losses alone.
LOSSES = "http://localhost:6006/?tagFilter=loss#timeseries"
# The fields by which TensorBoard compares runs. A table of all fields would have fifty columns.
COMPARED = {
    "model": ("dim", "n_layers", "n_heads", "n_future_tokens", "head_type", "head_order"),
    "data": ("seq_len",),
    "train": ("batch_tokens", "total_tokens", "seed"),
    "optim": ("lr", "min_lr_ratio", "warmup_steps", "weight_decay", "clip"),
}


def layout(log: LogConfig) -> Layout:
    """Return the charts that show several tags: category -> title -> (kind, regular expressions of the tags)."""
    charts: Layout = {
        "loss per head, nats per token": {
            "training": ("Multiline", ["^loss/head_"]),
            "validation": ("Multiline", ["^val/loss_head_"]),
        }
    }
    if log.grad_norms_every_steps:
        charts["gradients"] = {"L2 norm per block, before clipping": ("Multiline", ["^grad_norms/"])}
    return charts


def hyperparameters(config: Config) -> list[Any]:
    """Return two summaries: a run's hyperparameters, and the tags of the scalars that measure its success.

    TensorBoard itself looks up the newest points under these tags. The loss of head 1 comes first, because it means the
    same for any number of heads; the sum over the heads does not, and is left out.
    """
    from torch.utils.tensorboard.summary import hparams

    values = {
        f"{section}.{field}": getattr(getattr(config, section), field)
        for section, fields in COMPARED.items()
        for field in fields
    }
    heads = range(1, config.model.n_future_tokens + 1)
    validation = [f"val/loss_head_{head}" for head in heads] if config.train.eval_every_steps else []
    metrics = dict.fromkeys([*validation[:1], "loss/head_1", *validation[1:], "throughput/tokens_per_s"])
    experiment, start_of_session, _ = hparams(values, metrics)
    return [experiment, start_of_session]


def end_of_session() -> Any:
    """Return the summary that marks a run as finished."""
    from torch.utils.tensorboard.summary import hparams

    return hparams({}, {})[2]


def config_text(config: Config) -> str:
    """Return the resolved config as Markdown."""
    return f"```yaml\n{yaml.safe_dump(config.as_dict(), sort_keys=False)}```"
