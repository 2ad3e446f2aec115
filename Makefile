# The user's commands. `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-all test-faults test-slurm lint bench
.DELETE_ON_ERROR:

setup: .venv/installed

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 2; }
	@echo "Installing the pinned packages of requirements.txt into .venv (once; a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

# Two files at a time; those with real ranks, which take longest, begin.
PYTEST = $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: setup
	@$(PYTEST)

# Every way to run in every combination; about 90 minutes on 2 cores.
test-all: setup
	@$(PYTEST) -m "full or not full"

# 60 seeded faults over the demo's model, each followed by a restart; about 20 minutes on 2 cores.
test-faults: setup
	@$(MAKE) --no-print-directory --silent $(DEMO_TOKENIZER)
	@$(ON_CPU) python -m tests.faults.campaign --seed 1 --faults 60

# A real Slurm of three nodes in namespaces of this machine, and all that can happen to jobs on it; needs root.
test-slurm: setup
	@tests/slurm/install.sh || echo "What needs Slurm is skipped."
	@$(BIN)/python -m pytest -m "slurm or not slurm" tests/slurm

# How fast training steps are, what they hold and send, and how soon things start; tables here, every figure in runs/bench.
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

# The main job, small: corpus -> tokenizer -> shards -> training -> Meta format -> completion.
# Each stage leaves a file that says it is finished; a second `make demo` starts where that ends.
CORPUS = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
DEMO_TOKENIZER := data/demo/tokenizer.model
DEMO_SHARDS := data/demo/shards/metadata.json
DEMO_TRAINED := runs/demo/trained
DEMO_EXPORT := exports/demo/params.json
# On the CPU wherever this runs, one thread for each of the two ranks, and without the launcher's own chatter.
ON_CPU := DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 PATH="$(abspath $(BIN)):$$PATH"

demo: setup
	@$(MAKE) --no-print-directory --silent $(DEMO_EXPORT)
	@echo "[5/5] Complete code, self-speculatively and, to compare, one token at a time (after minutes of training it repeats itself)"
	@$(BIN)/python -m pipeline.generate --ckpt_dir exports/demo --tokenizer_path exports/demo/tokenizer.model \
	    --first_token eos --prompt 'import ' --prompt 'for ' --max_seq_len 64 --compare
	@echo
	@echo "Curves: $(BIN)/tensorboard --logdir runs/demo/tensorboard"
	@echo "Finished stages are kept (data/demo, runs/demo, exports/demo); make demo reuses them."

$(DEMO_TOKENIZER):
	@echo "[1/5] Train a tokenizer on the Python standard library, $(CORPUS)"
	@mkdir -p $(@D)
	@$(BIN)/python -m data_prep.train_tokenizer --input $(CORPUS) --extensions .py --output $@ --vocab_size 2048
	@echo

$(DEMO_SHARDS): $(DEMO_TOKENIZER)
	@echo "[2/5] Write it as shards"
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
