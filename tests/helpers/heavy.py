"""Libraries that take seconds to import, which `--help` and wrong arguments must do without."""

HEAVY = {"torch", "streaming", "deepspeed", "transformers"}
