"""Every key of DeepSpeed 0.19.8's JSON, and what this program does with it.

DeepSpeed passes over keys that it does not know, and over settings that do not go together; the run then trains
otherwise than its JSON says. Here each key has a row, and any other key is refused:

    supported   DeepSpeed does what the key says; tested to train, save, resume and convert (tests/distributed/modes.py)
    recipe      the recipe has the value: "auto", or the recipe's own
    no effect   nothing of this program depends on it: DeepSpeed does not get to see it, and the log names it
    refused     training, checkpoints or figures would be wrong or untested; only values that switch it off are accepted

A dict among the rows is a section. `deepspeed.checked` compares a JSON with this table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool
from pydantic.fields import FieldInfo

from pipeline.config.values import JsonWhole, described

Status = Literal["supported", "recipe", "no effect", "refused"]
Table = dict[str, Any]  # rows and sections


@dataclass(frozen=True, kw_only=True)
class Key:
    """The treatment of one key by this program."""

    status: Status
    why: str
    """What the key does; for a refused one why it is refused, and what to do instead."""
    type: Any = None
    """Which values of a supported key are accepted."""
    off: tuple[Any, ...] = ()
    """The values of a refused key that change nothing."""

    @property
    def field(self) -> FieldInfo:
        """The declaration of the accepted values."""
        return FieldInfo.from_annotation(self.type)

    @property
    def accepts(self) -> str:
        """The accepted values of a supported key in words."""
        return described(self.field)


def _supported(accepted: Any, why: str) -> Key:
    return Key(status="supported", why=why, type=accepted)


def _refused(why: str, *off: Any) -> Key:
    return Key(status="refused", why=why, off=off)


def _no_effect(why: str) -> Key:
    return Key(status="no effect", why=why)


def _of_recipe(field: str) -> Key:
    return Key(status="recipe", why=f"`{field}`")


def _whole(at_least: int, at_most: int = 10**15) -> Any:
    return Annotated[JsonWhole, Field(ge=at_least, le=at_most)]


_BOOL = StrictBool
_DTYPE = Literal["fp32", "bf16"] | None
_UNTESTED = "it is not tested to train, save, resume and convert"
_OWN_CHECKPOINTS = "DeepSpeed's own checkpoints are never written; the recipe's checkpoint section sets when to save"
_OWN_METRICS = "the run writes its own metrics (the recipe's log section)"
_REMOVED = "DeepSpeed has removed it"
_DISABLED: tuple[Any, ...] = ({}, {"enabled": False})
_NVME = "only offload to NVMe reads it, which is refused"
_ONLY_FP16 = "only fp16 reads it, which is refused"

_OFFLOAD: Table = {
    "device": _supported(
        Annotated[Literal["none", "cpu"], Field(description="'none' or 'cpu': checkpoints need the state in memory")],
        "where the part lies",
    ),
    "pin_memory": _supported(_BOOL, "copies through page-locked memory"),
    **{key: _no_effect(_NVME) for key in ("nvme_path", "buffer_count")},
}
_ZERO: Table = {
    "stage": _supported(_whole(0, 3), "what replicas divide: 0 nothing, 1 moments, 2 also gradients, 3 also weights"),
    "contiguous_gradients": _supported(_BOOL, "gathers gradients in one buffer"),
    "reduce_scatter": _supported(_BOOL, "reduces each gradient to the rank that owns it, instead of to all"),
    "reduce_bucket_size": _supported(_whole(1), "elements that are reduced at a time"),
    "use_multi_rank_bucket_allreduce": _supported(_BOOL, "joins the buckets of several ranks"),
    "allgather_partitions": _supported(_BOOL, "gathers updated weights in one collective, instead of many broadcasts"),
    "allgather_bucket_size": _supported(
        Annotated[JsonWhole, Field(ge=2, le=10**15, multiple_of=2)], "elements that are gathered at a time"
    ),
    "overlap_comm": _supported(_BOOL | None, "reduces gradients during the backward; off in pipelines"),
    "ignore_unused_parameters": _supported(_BOOL, "accepts weights without a gradient; there are none here"),
    "parameter_alignment": _supported(_BOOL, "aligns each weight in the flat buffers to 16 bytes"),
    "sub_group_size": _supported(_whole(1), "ZeRO-3: elements that the optimizer updates at a time"),
    "enable_sanity_checks": _supported(_BOOL, "ZeRO-3: checks DeepSpeed's own state"),
    "log_trace_cache_warnings": _supported(_BOOL, "ZeRO-3: warns if the order of the layers changes"),
    "offload_optimizer": {
        **_OFFLOAD,
        **{key: _no_effect(_NVME) for key in ("pipeline_read", "pipeline_write", "fast_init")},
        "ratio": _refused("it needs DeepSpeed's CPU Adam, and checkpoints hold the state of torch's AdamW", 1, 1.0),
        "super_offload": _refused("it needs DeepSpeed's CPU Adam", False),
        "cpuadam_cores_perc": _no_effect("only super_offload reads it, which is refused"),
    },
    "offload_param": {**_OFFLOAD, **{key: _no_effect(_NVME) for key in ("buffer_size", "max_in_cpu")}},
    "stage3_prefetch_bucket_size": _supported(_whole(0), "ZeRO-3: elements that are gathered ahead of use"),
    "stage3_param_persistence_threshold": _supported(_whole(0), "ZeRO-3: smaller weights stay whole on every rank"),
    "stage3_model_persistence_threshold": _supported(_whole(0, 2**63 - 1), "ZeRO-3: most elements that stay whole"),
    "stage3_max_live_parameters": _supported(_whole(0), "ZeRO-3: most elements that are gathered at a time"),
    "stage3_max_reuse_distance": _supported(_whole(0), "ZeRO-3: weights used again within it stay gathered"),
    "stage3_use_all_reduce_for_fetch_params": _supported(_BOOL, "ZeRO-3: gathers weights with an all-reduce"),
    "stage3_allgather_sequential": _supported(_BOOL, "ZeRO-3: gathers one weight at a time"),
    "round_robin_gradients": _refused("checkpoints would hold other weights than the model has", False),
    "compute_grad_norm": _refused("the run clips by the gradient's norm and reports it", True),
    "elastic_checkpoint": _refused(_OWN_CHECKPOINTS, False),
    "legacy_stage1": _refused(_REMOVED, False),
    "zenflow": _refused(_UNTESTED, None),
    "leaf_module": _refused("the program itself keeps the heads together under ZeRO-3", {}),
    "stage3_module_granularity_threshold": _refused("the program itself keeps the heads together under ZeRO-3", 0),
    "zero_hpz_partition_size": _refused(_UNTESTED, 1),
    **{
        f"zero_quantized_{part}": _refused("it trains on rounded numbers; " + _UNTESTED, False)
        for part in ("weights", "nontrainable_weights", "gradients")
    },
    "save_muon_momentum_buffer_in_memory": _refused("there is no Muon here; the recipe's optimizer is AdamW", False),
    "cpu_offload": _refused('write "offload_optimizer": {"device": "cpu"}', False, None),
    "cpu_offload_param": _refused('write "offload_param": {"device": "cpu"}', False, None),
    "cpu_offload_use_pin_memory": _refused("write pin_memory in offload_optimizer and offload_param", False, None),
    **{
        key: _refused(_REMOVED)
        for key in ("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param")
    },
    **{
        key: _no_effect(_OWN_CHECKPOINTS)
        for key in (
            "load_from_fp32_weights", "pipeline_loading_checkpoint", "stage3_gather_16bit_weights_on_model_save",
            "stage3_gather_fp16_weights_on_model_save",
        )
    },
    **{
        key: _no_effect("only deepspeed.zero.Init reads it, and the model is built without it")
        for key in ("memory_efficient_linear", "override_module_apply")
    },
}  # fmt: skip
# DeepSpeed also takes these without their prefix; one name is enough, and `pipeline.plan` reads that.
_ZERO |= {
    key.removeprefix("stage3_"): _refused(f"write {key}")
    for key in list(_ZERO)
    if key.startswith("stage3_") and key != "stage3_gather_fp16_weights_on_model_save"
}
_BF16: Table = {
    "enabled": _supported(_BOOL, "multiplies matrices in bf16; weights and moments stay fp32"),
    "immediate_grad_update": _supported(_BOOL, "adds each gradient to its fp32 sum as soon as it is there"),
    "check_grad_overflow": _refused("the run skips steps whose gradients are not finite", True),
    "bf16_master_weights_and_grads": _refused("checkpoints hold fp32 weights", False),
    "bf16_optimizer_states": _refused("checkpoints hold fp32 moments", False),
}
_ADAMW: Table = {
    "lr": _of_recipe("optim.lr"),
    "betas": _of_recipe("optim.beta1` and `optim.beta2"),
    "eps": _of_recipe("optim.eps"),
    "weight_decay": _of_recipe("optim.weight_decay"),
    "torch_adam": _refused("checkpoints hold the state of torch's AdamW", True),
    "fused": _supported(_BOOL | None, "updates all weights in one kernel; not together with foreach"),
    "foreach": _supported(_BOOL | None, "updates weights in groups; not together with fused"),
    "adam_w_mode": _refused("the recipe's weight decay is decoupled", True),
    "amsgrad": _refused("checkpoints do not hold its maxima", False),
    "maximize": _refused("it would raise the loss", False),
    "capturable": _refused(_UNTESTED, False),
    "differentiable": _refused(_UNTESTED, False),
    "max_grad_norm": _refused("the recipe's optim.clip is the norm to clip to"),
    "bias_correction": _refused("torch's AdamW always corrects the bias", True),
    "fp32_optimizer_states": _no_effect("only DeepSpeed's CPU Adam reads it"),
}
TABLE: Table = {
    "train_batch_size": _of_recipe("train.batch_tokens"),
    "train_micro_batch_size_per_gpu": _of_recipe("train.micro_batch_size"),
    "gradient_accumulation_steps": _of_recipe("train.batch_tokens"),
    "gradient_clipping": _of_recipe("optim.clip"),
    "optimizer": {
        "type": _supported(
            Annotated[Literal["AdamW"], Field(description="'AdamW': the recipe's weight decay is decoupled")],
            "the optimizer",
        ),
        "params": _ADAMW,
        "legacy_fusion": _no_effect("only DeepSpeed's own Adam reads it"),
    },
    "bf16": _BF16,
    "bfloat16": _BF16,
    "zero_optimization": _ZERO,
    "data_types": {
        "grad_accum_dtype": _supported(_DTYPE, "the type in which gradients are summed over micro batches"),
        "param_dtype": _refused("bf16.enabled sets it", None),
        "buffer_dtype": _refused("rotary frequencies stay fp32", None),
        "keep_in_fp32_modules": _refused("the model itself keeps its rotary frequencies in fp32", "auto"),
    },
    "communication_data_type": _supported(_DTYPE, "the type in which gradients travel between ranks"),
    "wall_clock_breakdown": _supported(_BOOL, "prints DeepSpeed's timers at every step; not in pipelines"),
    "memory_breakdown": _supported(_BOOL, "prints the use of memory around every step"),
    "dump_state": _supported(_BOOL, "prints DeepSpeed's configuration at the start"),
    "log_level": _supported(Literal["debug", "info", "warning", "error", "critical"], "of DeepSpeed's own messages"),
    "disable_python_gc": _supported(_BOOL, "switches off Python's collector of reference cycles"),
    "timers": {
        "throughput": {
            "enabled": _supported(_BOOL, "measures throughput in DeepSpeed too"),
            "synchronized": _supported(_BOOL, "waits for the device to do so, which slows down training"),
        }
    },
    "fp16": {
        "enabled": _refused(
            "the heads' gradients are computed before the loss is scaled, and would underflow; bf16 works", False
        ),
        "fp16_master_weights_and_grads": _refused("checkpoints hold fp32 weights", False),
        **{
            key: _no_effect(_ONLY_FP16)
            for key in (
                "auto_cast", "loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis",
                "consecutive_hysteresis", "min_loss_scale",
            )
        },
    },
    "scheduler": _refused("the learning rate belongs to the recipe's optim section"),
    "tensor_parallel": _refused("it belongs to the recipe (parallel.tensor_parallel_size)"),
    "pipeline": _refused("it belongs to the recipe (parallel.pipeline_stages)", {}),
    "sequence_parallel_size": _refused("it belongs to the recipe (parallel.sequence_parallel_size)", 1),
    "activation_checkpointing": _refused("it belongs to the recipe (train.activation_checkpointing)", {}),
    "compile": _refused("it belongs to the recipe (train.compile)", {}, {"deepcompile": False}),
    "torch_autocast": _refused("the precision is bf16.enabled's", *_DISABLED),
    "flops_profiler": _refused("pipeline.plan prints FLOPs, and the recipe's profile.steps records times", *_DISABLED),
    "comms_logger": _refused("nothing prints its summary; the recipe's profile.steps records collectives", *_DISABLED),
    **{key: _refused(_OWN_METRICS, *_DISABLED) for key in ("tensorboard", "wandb", "csv_monitor", "comet")},
    "autotuning": _refused("it ends the run after a few steps; pipeline.plan compares settings instead", *_DISABLED),
    "data_efficiency": _refused("the recipe's data section sets the order of samples", *_DISABLED),
    "hybrid_engine": _refused(_UNTESTED, *_DISABLED),
    "weight_quantization": _refused(_UNTESTED),
    "expert_parallel": _refused("the model has no experts", *_DISABLED),
    "use_data_before_expert_parallelism": _refused("the model has no experts", False),
    "managed_gradient_accumulation": _refused("DeepSpeed must count the micro batches of a step", True),
    "seq_parallel_communication_data_type": _refused(_UNTESTED, "fp32"),
    "prescale_gradients": _refused(_UNTESTED, False),
    "gradient_predivide_factor": _refused(_UNTESTED, 1, 1.0),
    "gradient_allreduce_op": _refused("the loss is the mean over the batch", "mean"),
    "checkpoint": _refused(_OWN_CHECKPOINTS, {}),
    "datastates_ckpt": _refused(_OWN_CHECKPOINTS, False),
    **{
        key: _refused(_REMOVED, False, *_DISABLED)
        for key in (
            "amp", "compression_training", "curriculum_learning", "eigenvalue", "elasticity", "graph_harvesting",
            "nebula", "progressive_layer_drop", "quantize_training", "sparse_attention", "sparse_gradients",
        )
    },
    "steps_per_print": _no_effect("the run's own log reports, every log.every_steps of the recipe"),
    "aio": _no_effect(_NVME),
    "dataloader_drop_last": _no_effect("the batches are not DeepSpeed's"),
    "disable_allgather": _no_effect("DeepSpeed does not read it either"),
    "allgather_size": _no_effect("zero_optimization.allgather_bucket_size replaced it"),
    "vocabulary_size": _no_effect("the recipe has model.vocab_size"),
    "zero_allow_untested_optimizer": _no_effect("the optimizer is one that DeepSpeed has tested"),
    "zero_force_ds_cpu_optimizer": _no_effect("the optimizer comes from this JSON"),
}  # fmt: skip


def rows(table: Table = TABLE, *, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yield every row with its dotted name."""
    for key, row in table.items():
        if isinstance(row, Key):
            yield f"{prefix}{key}", row
        else:
            yield from rows(row, prefix=f"{prefix}{key}.")
