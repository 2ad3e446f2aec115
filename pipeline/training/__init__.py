"""The training loop, and DeepSpeed around the model; no other package imports deepspeed."""
