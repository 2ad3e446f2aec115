# shellcheck shell=bash
# The part that all templates share: it reads the site's settings, loads the software, checks the nodes, starts the ranks,
# and requeues or ends the job. A template sources this file in the folder that it was submitted from, the root of the
# repository.
#
# Signals. Slurm warns of the time limit by sending USR1 to the tasks only (--signal=USR1@...), and ends jobs by sending
# TERM to all processes. Training tasks start with both signals blocked, and receive them once they can save
# (pipeline/runtime/stop.py), so that no signal is lost, or kills a task, while Python starts. This shell only waits for
# the tasks: if TERM ended it, Slurm would kill the tasks in the middle of their save.
#
# Requeueing. Slurm itself requeues a job that was preempted or whose node failed (--requeue). A job that stopped before
# its time limit, reached it, or failed requeues itself at its end, unless it was cancelled or pipeline.requeue refuses.
set -euo pipefail

fail() {
    echo "slurm: error: $*" >&2
    exit 2
}

. slurm/read_site.sh
[ -n "${SLURM_JOB_ID:-}${CHECK_ONLY:-}" ] || fail "$0 must run as a Slurm job; slurm/submit.sh $(basename "$0" .sbatch) queues it"

load_software() {
    if [ -n "$MODULES" ]; then
        set +u # the modules' own scripts use unset variables
        type module > /dev/null 2>&1 || . /etc/profile
        type module > /dev/null 2>&1 || fail "MODULES=\"$MODULES\", but there is no module command on $(hostname)"
        # shellcheck disable=SC2086 # a list
        module load $MODULES || fail "MODULES=\"$MODULES\" cannot be loaded on $(hostname); module avail lists what there is"
        set -u
    fi
    if [ -n "$VENV" ]; then
        [ -x "$VENV/bin/python" ] || fail "VENV=$VENV has no bin/python on $(hostname); run make setup, or set it in slurm/site.env"
        PATH=$(realpath "$VENV")/bin:$PATH
    fi
    read -ra container <<< "$CONTAINER"
    if [ ${#container[@]} -gt 0 ]; then
        type "${container[0]}" > /dev/null 2>&1 || fail "CONTAINER: command ${container[0]} not found on $(hostname)"
    fi
    case $DEVICE in
        cuda) ;;
        cpu) export DS_ACCELERATOR=cpu ;;
        *) fail "DEVICE=$DEVICE must be cuda or cpu" ;;
    esac
    export TMPDIR=$NODE_SCRATCH TRITON_CACHE_DIR=$NODE_SCRATCH/triton-$UID
}

in_software() { "${container[@]}" "$@"; }

# ranks NODES RANKS_PER_NODE LOG COMMAND...: run the command with srun, one task per rank. LOG may contain %t, the rank; if
# it is empty, the output goes to the job's log. Sets exit_code to the largest exit code of the tasks.
ranks() {
    local n_nodes=$1 per_node=$2 log=$3 more=()
    [ "$DEVICE" = cpu ] || [ -z "${gpus_per_node:-}" ] || more+=(--gpus-per-node="$gpus_per_node")
    [ -z "$log" ] || more+=(--open-mode=append --output="$log")
    shift 3
    # When a task fails, the others have a minute to end by themselves, with exit codes of their own.
    srun --nodes="$n_nodes" --ntasks-per-node="$per_node" --cpus-per-task=$((SLURM_CPUS_ON_NODE / per_node)) "${more[@]}" \
        --kill-on-bad-exit=0 --wait=60 --unbuffered \
        "${first[@]}" "${container[@]}" "$@" &
    await $!
}

# await PID: wait for a process, whatever signals arrive. If one of them came from the time limit, requeue at once: this
# shell has only seconds left, while the ranks are still saving.
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

# slurm_says STATE REASON: whether Slurm's state and reason of this start of the job match these patterns. Nothing matches
# if Slurm has already started the job again: then this start runs on where Slurm cannot reach it.
slurm_says() {
    local state reason restarts
    read -r state reason restarts < <(squeue --noheader --jobs="$SLURM_JOB_ID" --Format="State:. ,Reason:. ,RestartCnt:.")
    # shellcheck disable=SC2053 # patterns
    [[ $restarts == "${SLURM_RESTART_COUNT:-0}" && $state == $1 && $reason == $2 ]]
}

# start_again EXIT_CODE: requeue this job, if it may start again after this exit code.
start_again() {
    may_start_again "$1" || return 0
    echo "slurm: requeueing job $SLURM_JOB_ID after exit code $1"
    scontrol requeue "$SLURM_JOB_ID"
}

# end: requeue the job, or end it with the ranks' exit code.
end() {
    if [ "$exit_code" != 0 ] && slurm_says RUNNING "*"; then
        start_again "$exit_code"
        sleep 5 # Slurm ends a requeued job
    fi
    exit "$exit_code"
}

# train RECIPE DEEPSPEED_JSON [section.field=value ...]: a whole training job. With CHECK_ONLY=1, outside of a job, only
# check what can be checked there, and print the run directory.
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
    may_start_again() {
        local answer=0
        in_software python -m pipeline.requeue "$run_dir" --job "$SLURM_JOB_ID" --exit_code "$1" || answer=$?
        case $answer in
            0) return 0 ;;
            3) return 1 ;;
        esac
        echo "slurm: warning: pipeline.requeue failed with exit code $answer; in doubt the job starts again, 20 times at most" >&2
        [[ ! $1 =~ ^(0|2|65|74|77)$ && ${SLURM_RESTART_COUNT:-0} -lt 20 ]]
    }
    end
}

# once COMMAND...: a whole job of one process, which continues where it was stopped when it is started again.
once() {
    [ -w "$NODE_SCRATCH" ] || fail "NODE_SCRATCH=$NODE_SCRATCH cannot be written on $(hostname)"
    ranks 1 1 "" "$@"
    end
}

# may_start_again EXIT_CODE: Slurm sends USR1, KILL and TERM, so ending by them is no failure. A job that has not finished
# after this many starts never will.
may_start_again() { [[ $1 =~ ^(75|137|138|143)$ && ${SLURM_RESTART_COUNT:-0} -lt 20 ]]; }

nodes_of() { sed -n 's/^#SBATCH --nodes=//p' "$1"; }
