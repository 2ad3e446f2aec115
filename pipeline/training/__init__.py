"""The training loop, and DeepSpeed around the model; only this package imports deepspeed."""
