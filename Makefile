# The commands for users and contributors. Each runs `make setup` first if it has not been run.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-all test-faults test-slurm lint bench
.DELETE_ON_ERROR:

setup: .venv/installed

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 2; }
	@echo "Installing the packages pinned in requirements.txt into .venv (once; takes a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --quiet --disable-pip-version-check --requirement requirements.txt
# streaming's wheel requires torchvision, which we never use. PyPI's wheel of it does not import beside a CPU build of
# torch, and transformers fails on a torchvision that is there but does not import. Without one, transformers works, and
# common/mds.py imports streaming.
	@$(BIN)/python -c 'import torchvision' 2> /dev/null || \
	    $(BIN)/pip uninstall --quiet --yes --disable-pip-version-check torchvision
	@touch $@

# Two test files at a time. The files that start real ranks take longest, so they begin.
PYTEST = $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: setup
	@$(PYTEST)

# The whole matrix of ways to run, in every combination; about 90 minutes on 2 cores.
test-all: setup
	@$(PYTEST) -m "full or not full"

# 60 seeded faults in training runs of the demo's model, each followed by a restart; about 20 minutes on 2 cores.
test-faults: setup
	@$(MAKE) --no-print-directory --silent $(DEMO_TOKENIZER)
	@$(ON_CPU) python -m tests.faults.campaign --seed 1 --faults 60

# The Slurm templates on a real Slurm cluster of three nodes, each in its own namespaces on this machine; needs root.
test-slurm: setup
	@tests/slurm/install.sh || echo "Slurm could not be installed: the tests that need it are skipped."
	@$(BIN)/python -m pytest -m "slurm or not slurm" tests/slurm

# Speed, memory and communication of training steps, reading speed and start-up time. Prints tables; runs/bench/*.json has
# every figure.
bench: setup
	@mkdir -p runs/bench
	@for name in train_step growth loader_rate startup collectives; do \
	    echo "$$name"; $(ON_CPU) python -m benchmarks.$$name --json runs/bench/$$name.json \
	        $$(test $$name = growth && echo --plot runs/bench/growth.png) || exit 1; echo; \
	done

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/shellcheck --external-sources slurm/*.sbatch slurm/*.sh slurm/site.env tests/slurm/install.sh .ci/run

# The whole way at a small size: corpus -> tokenizer -> shards -> training -> Meta's format -> completion.
# Each stage leaves a file that marks it as finished; a second `make demo` skips the finished stages.
CORPUS = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
DEMO_TOKENIZER := data/demo/tokenizer.model
DEMO_SHARDS := data/demo/shards/metadata.json
DEMO_TRAINED := runs/demo/trained
DEMO_EXPORT := exports/demo/params.json
# Run on the CPU even where there is a GPU, with one thread for each of the two ranks.
ON_CPU := DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 PATH="$(abspath $(BIN)):$$PATH"

COMPLETE := $(ON_CPU) python -m pipeline.generate --ckpt_dir exports/demo --tokenizer_path exports/demo/tokenizer.model \
    --prompt 'def __init__(self' --prompt 'class TestCase(unittest'

# What was written last is the model's text, sampled: greedily, a model this small repeats itself (docs/decisions.md).
demo: setup
	@$(MAKE) --no-print-directory --silent $(DEMO_EXPORT)
	@echo "[5/5] Complete code. First greedily, for a few tokens, by all heads together and by the next-token head alone: the"
	@echo "text is the same, with fewer forward passes. That saves time only in models much larger than this one."
	@$(COMPLETE) --max_gen_len 12 --compare
	@echo
	@echo "Finished stages stay in data/demo, runs/demo and exports/demo; make demo reuses them."
	@echo "To see the losses: $(BIN)/tensorboard --logdir runs/demo/tensorboard"
	@echo "then open http://localhost:6006/?tagFilter=loss#timeseries"
	@echo
	@echo "Now sampled. This is what 1 million tokens teach 4 million parameters: the looks of Python, and not its sense."
	@$(COMPLETE) --max_seq_len 120 --temperature 0.8

$(DEMO_TOKENIZER):
	@echo "[1/5] Train a tokenizer on the Python standard library in $(CORPUS)"
	@mkdir -p $(@D)
	@$(BIN)/python -m data_prep.train_tokenizer --input $(CORPUS) --extensions .py --output $@ --vocab_size 2048
	@echo

$(DEMO_SHARDS): $(DEMO_TOKENIZER)
	@echo "[2/5] Write the standard library as shards"
	@$(BIN)/python -m data_prep.write_shards --input $(CORPUS) --extensions .py --tokenizer $< --out $(@D) \
	    --seq_len 256 --val_fraction 0.01
	@echo

$(DEMO_TRAINED): $(DEMO_SHARDS) pipeline/recipes/demo.yaml
	@echo "[3/5] Train with 4 heads under ZeRO-1 on 2 CPU ranks"
	@$(ON_CPU) deepspeed --num_gpus 2 --log_level error --module pipeline.train \
	    --config pipeline/recipes/demo.yaml --deepspeed_config ds_configs/zero1_fp32.json
	@touch $@
	@echo

$(DEMO_EXPORT): $(DEMO_TRAINED)
	@echo "[4/5] Convert the checkpoint to Meta's format"
	@$(ON_CPU) python -m pipeline.convert --input runs/demo --to meta --output $(@D)
	@echo
