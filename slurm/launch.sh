# shellcheck shell=bash
# What the templates share: the site's settings, its software, a check of the nodes, the ranks, and what follows from the
# way they end. A template sources this in the folder that it was submitted from, the root of the repository.
#
# Signals. Slurm warns of the time limit with USR1 to the tasks alone (--signal=USR1@...), and ends jobs with TERM to all.
# Training tasks begin with both blocked, and take them once they can save (pipeline/runtime/stop.py), so that none is lost, or
# deadly, while Python starts. This shell only waits for them: if it died of TERM, Slurm would kill them in the middle of
# their save.
#
# Requeueing. Slurm itself requeues a job that was preempted, or whose node failed (--requeue). One that stopped before its
# time limit, ran into it, or failed asks Slurm for that at its end, unless it was cancelled, or pipeline.requeue is against it.
set -euo pipefail

fail() {
    echo "slurm: error: $*" >&2
    exit 2
}

. slurm/site.env
[ -n "${SLURM_JOB_ID:-}${CHECK_ONLY:-}" ] || fail "$0 is a job; slurm/submit.sh $(basename "$0" .sbatch) queues it"

load_software() {
    if [ -n "$MODULES" ]; then
        set +u # modules' own scripts use what is not set
        type module > /dev/null 2>&1 || . /etc/profile
        type module > /dev/null 2>&1 || fail "MODULES=\"$MODULES\", but there is no module command on $(hostname)"
        # shellcheck disable=SC2086 # a list
        module load $MODULES || fail "MODULES=\"$MODULES\" cannot be loaded on $(hostname); see module avail"
        set -u
    fi
    if [ -n "$VENV" ]; then
        [ -x "$VENV/bin/python" ] || fail "VENV=$VENV has no bin/python on $(hostname); run make setup, or set it in slurm/site.env"
        PATH=$(realpath "$VENV")/bin:$PATH
    fi
    read -ra container <<< "$CONTAINER"
    if [ ${#container[@]} -gt 0 ]; then
        type "${container[0]}" > /dev/null 2>&1 || fail "CONTAINER: there is no ${container[0]} on $(hostname)"
    fi
    case $DEVICE in
        cuda) ;;
        cpu) export DS_ACCELERATOR=cpu ;;
        *) fail "DEVICE=$DEVICE must be cuda or cpu" ;;
    esac
    export TMPDIR=$NODE_SCRATCH TRITON_CACHE_DIR=$NODE_SCRATCH/triton-$UID
}

in_software() { "${container[@]}" "$@"; }

# ranks NODES RANKS_PER_NODE LOG COMMAND...: start the command by srun, one task for each rank. LOG may contain %t, the rank;
# empty is the job's own. Sets exit_code to the largest of theirs.
ranks() {
    local n_nodes=$1 per_node=$2 log=$3 more=()
    [ "$DEVICE" = cpu ] || [ -z "${gpus_per_node:-}" ] || more+=(--gpus-per-node="$gpus_per_node")
    [ -z "$log" ] || more+=(--open-mode=append --output="$log")
    shift 3
    # A task that fails leaves the others a minute to end by themselves, with exit codes of their own.
    srun --nodes="$n_nodes" --ntasks-per-node="$per_node" --cpus-per-task=$((SLURM_CPUS_ON_NODE / per_node)) "${more[@]}" \
        --kill-on-bad-exit=0 --wait=60 --unbuffered \
        "${first[@]}" "${container[@]}" "$@" &
    await $!
}

# Wait for a process through all signals; if one of them was the time limit's, requeue at once, since this shell has only
# seconds left, while the ranks go on saving.
await() {
    while kill -0 "$1" 2> /dev/null; do
        wait "$1" || true
        if [ -n "$terminated" ]; then
            terminated=
            ! slurm_says "*" TimeLimit || start_again 75
        fi
    done
    exit_code=0
    wait "$1" || exit_code=$?
}
terminated=
first=()
trap 'terminated=1' TERM
trap : USR1

# slurm_says STATE REASON: whether these patterns match what Slurm has to say of this start of the job. What it says of
# a later start is not about this one, which then lives on where Slurm cannot reach it.
slurm_says() {
    local state reason restarts
    read -r state reason restarts < <(squeue --noheader --jobs="$SLURM_JOB_ID" --Format="State:. ,Reason:. ,RestartCnt:.")
    # shellcheck disable=SC2053 # patterns
    [[ $restarts == "${SLURM_RESTART_COUNT:-0}" && $state == $1 && $reason == $2 ]]
}

# start_again EXIT_CODE: requeue this job, if that makes sense after such an end.
start_again() {
    may_start_again "$1" || return 0
    echo "slurm: requeueing job $SLURM_JOB_ID after exit code $1"
    scontrol requeue "$SLURM_JOB_ID"
}

# End the job with the ranks' exit code, or requeue it.
end() {
    if [ "$exit_code" != 0 ] && slurm_says RUNNING "*"; then
        start_again "$exit_code"
        sleep 5 # a requeued job is ended by Slurm
    fi
    exit "$exit_code"
}

# train RECIPE DEEPSPEED_JSON [section.field=value ...]: the whole of a training job. With CHECK_ONLY=1, outside of a job,
# check everything that can be checked there, and print the run's folder.
train() {
    local recipe=$1 deepspeed_json=$2 n_nodes=${SLURM_JOB_NUM_NODES:-${TRAIN_NODES:-$(nodes_of "$0")}}
    shift 2
    local arguments=(--config "$recipe" --deepspeed_config "$deepspeed_json" "run.dir=$RUNS" "data.shards=$SHARDS")
    case $SHARDS in s3://*) arguments+=("data.cache=$NODE_SCRATCH/shards-$UID") ;; esac
    arguments+=("$@")
    load_software
    run_dir=$(in_software python -m pipeline.check_run --nodes "$n_nodes" --ranks_per_node "$RANKS_PER_NODE" "${arguments[@]}") || exit
    if [ -n "${CHECK_ONLY:-}" ]; then
        echo "$run_dir"
        exit
    fi
    mkdir -p "$run_dir/ranks"
    echo "slurm: job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST: $run_dir"

    gpus_per_node=$RANKS_PER_NODE
    export run_dir DEVICE RANKS_PER_NODE INTERFACE NODE_SCRATCH
    ranks "$n_nodes" 1 "" bash slurm/check_node.sh
    if [ "$exit_code" = 0 ]; then
        export NCCL_SOCKET_IFNAME=$INTERFACE GLOO_SOCKET_IFNAME=$INTERFACE NCCL_DEBUG=${NCCL_DEBUG:-WARN}
        export OMP_NUM_THREADS=$((SLURM_CPUS_ON_NODE / RANKS_PER_NODE))
        first=(env "--block-signal=USR1,TERM")
        ranks "$n_nodes" "$RANKS_PER_NODE" "$run_dir/ranks/output_%5t.log" python -m pipeline.train "${arguments[@]}"
    fi
    may_start_again() { in_software python -m pipeline.requeue "$run_dir" --job "$SLURM_JOB_ID" --exit_code "$1"; }
    end
}

# once COMMAND...: the whole of a job of one process, which goes on where it was killed.
once() {
    ranks 1 1 "" "$@"
    end
}

# A signal's end (USR1, KILL, TERM) is Slurm's doing; a job that was never through after this many starts will never be.
may_start_again() { [[ $1 =~ ^(75|137|138|143)$ && ${SLURM_RESTART_COUNT:-0} -lt 20 ]]; }

nodes_of() { sed -n 's/^#SBATCH --nodes=//p' "$1"; }
