#!/bin/bash
# Queue stages of the work, each to start when the one before has succeeded. First check everything that can be checked now.
#
#   slurm/submit.sh STAGE... [-- ARGUMENT...]
#
#   slurm/submit.sh prepare_data train_200B convert evaluate      everything from a corpus to pass@k
#   slurm/submit.sh train_200B                                    one stage
#   slurm/submit.sh train_1T -- train.seed=2                      arguments go to the training stage, if there is one,
#   slurm/submit.sh convert evaluate -- runs/7B_200B_n4           otherwise to the first stage
#
# Stages must be in this order, with at most one training stage. Each is a template beside this file; its first lines
# describe it and the environment variables that it reads.
# DRY_RUN=1 only checks and queues nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "submit.sh: error: $*" >&2
    exit 2
}

all_stages=$(cd slurm && echo *.sbatch | sed 's/\.sbatch//g')
stages=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in -h | --help)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' slurm/submit.sh
        exit
        ;;
    esac
    [ -f "slurm/$1.sbatch" ] || fail "unknown stage $1; the stages are $all_stages; arguments come after --"
    stages+=("$1")
    shift
done
[ ${#stages[@]} -gt 0 ] || fail "give at least one stage of $all_stages; see slurm/submit.sh --help"
[[ " ${stages[*]} " =~ ^\ (prepare_data\ )?(train_[^ ]+\ )?(convert\ )?(evaluate\ )?$ ]] ||
    fail "${stages[*]}: stages must be in the order prepare_data train_... convert evaluate, each at most once"
[ $# = 0 ] || shift
arguments=("$@")
. slurm/read_site.sh
has() { [[ " ${stages[*]} " == *" $1"* ]]; } # has STAGE: whether a stage starts with this name
case ${stages[0]} in
    train_*) ;;
    prepare_data) has train || [ $# = 0 ] || fail "prepare_data takes no arguments: $*; its options are in slurm/site.env" ;;
    *) has train || [ $# -le 1 ] || fail "${stages[0]} takes one argument, not $#: $*" ;;
esac

# --- Report all problems in site.env at once
problems=()
filled_in() {
    local name
    for name in "$@"; do
        case ${!name-CHANGE_ME} in *CHANGE_ME*) problems+=("$name=CHANGE_ME must be filled in") ;; esac
    done
}
given() { # filled in and not empty
    local name
    filled_in "$@"
    for name in "$@"; do [ -n "${!name-unset}" ] || problems+=("$name must not be empty"); done
}
number() {
    local name
    for name in "$@"; do [[ ${!name-} =~ ^[1-9][0-9]*$ ]] || problems+=("$name=${!name-} must be a whole number above 0"); done
}
filled_in ACCOUNT MODULES VENV CONTAINER MEMORY SBATCH_OPTIONS
given NODE_SCRATCH
command -v sbatch > /dev/null || problems+=("command sbatch not found on $(hostname): call this on a login node of the cluster")
if has prepare_data || has convert; then filled_in CPU_PARTITION; fi
if has train || has evaluate; then filled_in GPU_PARTITION; fi
if has prepare_data || has convert || has evaluate; then number CPUS; fi
if has train; then
    given INTERFACE RUNS SHARDS
    number RANKS_PER_NODE
    [ -z "${TRAIN_NODES-CHANGE_ME}" ] || number TRAIN_NODES
fi
if has convert; then given EXPORTS; fi
if has prepare_data; then
    given CORPUS TOKENIZER SHARDS
    filled_in PREPARE_OPTIONS
    for source in $CORPUS; do
        [ -e "$source" ] || [[ $source == *CHANGE_ME* ]] || problems+=("CORPUS: $source does not exist")
    done
    case $TOKENIZER in bytes | *CHANGE_ME*) ;; *) [ -f "$TOKENIZER" ] || problems+=("TOKENIZER=$TOKENIZER does not exist") ;; esac
    case $SHARDS in *://*) problems+=("SHARDS=$SHARDS: prepare_data needs a folder that all nodes see; data_prep.upload_shards can copy it there afterwards") ;; esac
    number PREPARE_JOBS
fi
if has evaluate; then
    given PROBLEMS EXPORTS EVALUATIONS
    filled_in EVALUATE_OPTIONS
    case $PROBLEMS in *CHANGE_ME*) ;; *) [ -f "$PROBLEMS" ] || problems+=("PROBLEMS=$PROBLEMS does not exist") ;; esac
fi
if [ ${#problems[@]} -gt 0 ]; then fail "slurm/site.env$(printf '\n  - %s' "${problems[@]}")"; fi

CHECK_ONLY=1 bash -c '. slurm/launch.sh; load_software' || exit 2

# --- Check the inputs of each stage; the output of an earlier stage need not exist yet
run=
export_=
for stage in "${stages[@]}"; do
    case $stage in
        train_*)
            later=()
            if has prepare_data; then later=('data.shards=""'); fi
            run=$(CHECK_ONLY=1 bash "slurm/$stage.sbatch" "${arguments[@]}" "${later[@]}") || exit
            ;;
        convert)
            run=${run:-${arguments[0]:-}}
            [ -n "$run" ] || fail "convert needs a run directory: slurm/submit.sh convert -- $RUNS/7B_200B_n4"
            has train || [ -d "$run/checkpoints" ] || fail "$run is not a run directory: it has no checkpoints/"
            ;;
        evaluate)
            if [ -n "$run" ]; then export_=$EXPORTS/$(basename "$run"); else export_=${arguments[0]:-}; fi
            [ -n "$export_" ] || fail "evaluate needs a converted model: slurm/submit.sh evaluate -- $EXPORTS/7B_200B_n4"
            has convert || [ -d "$export_" ] || fail "$export_ does not exist"
            ;;
    esac
done

# --- Queue the stages
read -ra common <<< "--export=ALL $SBATCH_OPTIONS" # jobs read N_FUTURE_TOKENS and other variables, whatever SBATCH_EXPORT says
common+=(--kill-on-invalid-dep=yes) # a job whose dependency failed leaves the queue
[ -z "$ACCOUNT" ] || common+=(--account="$ACCOUNT")
cpu=(--cpus-per-task="$CPUS" ${MEMORY:+--mem="$MEMORY"} ${CPU_PARTITION:+--partition="$CPU_PARTITION"})
gpu=(${GPU_PARTITION:+--partition="$GPU_PARTITION"})
one_gpu=("${gpu[@]}" --cpus-per-task="$CPUS" ${MEMORY:+--mem="$MEMORY"})
training=("${gpu[@]}" ${TRAIN_NODES:+--nodes="$TRAIN_NODES"})
if [ "$DEVICE" = cuda ]; then
    one_gpu+=(--gpus-per-node=1)
    training+=(--gpus-per-node="$RANKS_PER_NODE")
fi
previous=
submit() { # submit WHAT SBATCH_ARGUMENT...: queue a job after the previous one
    local what=$1 id
    shift
    if [ -n "$trial" ]; then
        said=$(sbatch --test-only --quiet "${common[@]}" "$@" 2>&1) || fail "Slurm refuses $what: $said"
    else
        id=$(sbatch --parsable "${common[@]}" ${previous:+--dependency=afterok:"$previous"} "$@") || fail "Slurm refused $what"
        previous=${id%%;*}
        [[ $previous =~ ^[0-9]+$ ]] ||
            fail "sbatch printed \"$id\" instead of the number of the job for $what; squeue --me shows whether it is queued"
        queued+=("$previous")
        printf '%-14s job %s%s\n' "$what" "$previous" "${dependents:-}"
        dependents=", starts when the one above has succeeded"
    fi
}
submit_all() {
    for stage in "${stages[@]}"; do
        case $stage in
            prepare_data)
                if [[ $PREPARE_OPTIONS =~ --dedup[=[:space:]]+(exact|near) ]]; then
                    submit "survey" "${cpu[@]}" --array=1-"$PREPARE_JOBS" slurm/prepare_data.sbatch survey
                fi
                submit "write shards" "${cpu[@]}" --array=1-"$PREPARE_JOBS" slurm/prepare_data.sbatch write
                submit "merge" "${cpu[@]}" --output=slurm-%j-%x.log slurm/prepare_data.sbatch merge
                ;;
            train_*) submit "$stage" "${training[@]}" "slurm/$stage.sbatch" "${arguments[@]}" ;;
            convert) submit convert "${cpu[@]}" slurm/convert.sbatch "$run" ;;
            evaluate) submit evaluate "${one_gpu[@]}" slurm/evaluate.sbatch "$export_" ;;
        esac
    done
}
# all_or_none: if this script ends before all stages are queued, take back those that are.
queued=()
all_or_none() {
    [ ${#queued[@]} -gt 0 ] || return 0
    if scancel "${queued[@]}"; then
        echo "submit.sh: cancelled the stages before it: ${queued[*]}; nothing of this command is left in the queue" >&2
    else
        echo "submit.sh: error: the stages before it are still queued; cancel them with: scancel ${queued[*]}" >&2
    fi
}
trap all_or_none EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
trial=1
submit_all
if [ -n "${DRY_RUN:-}" ]; then
    echo "No problems found; nothing was queued."
    exit
fi
trial=
submit_all
trap - EXIT INT TERM HUP

echo
echo "Watch:    squeue --me; each job's output is slurm-<job>-<stage>.log here"
if has train; then
    echo "          $run/train.log and ranks/; tensorboard --logdir $run/tensorboard"
    echo "Stop:     scancel <job>; the job saves first, and the same command continues from there."
fi
