#!/bin/bash
# Queue stages of the work, each to begin when the one before has succeeded, after checking all that can be checked now.
#
#   slurm/submit.sh STAGE... [-- ARGUMENT...]
#
#   slurm/submit.sh prepare_data train_200B convert evaluate      the whole way from a corpus to pass@k
#   slurm/submit.sh train_200B                                    one stage
#   slurm/submit.sh train_1T -- train.seed=2                      arguments are the training stage's, if there is one,
#   slurm/submit.sh convert evaluate -- runs/7B_200B_n4           and else the first stage's
#
# A stage is a template beside this file; its first lines say what it does, and what it reads from the environment.
# DRY_RUN=1 checks, and queues nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "submit.sh: error: $*" >&2
    exit 2
}

stages=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in -h | --help)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' slurm/submit.sh
        exit
        ;;
    esac
    [ -f "slurm/$1.sbatch" ] || fail "there is no stage $1; there are $(cd slurm && echo *.sbatch | sed 's/\.sbatch//g')"
    stages+=("$1")
    shift
done
[ ${#stages[@]} -gt 0 ] || fail "which stage? $(cd slurm && echo *.sbatch | sed 's/\.sbatch//g'); see slurm/submit.sh --help"
[ $# = 0 ] || shift
arguments=("$@")
. slurm/site.env
has() { [[ " ${stages[*]} " == *" $1"* ]]; } # has STAGE: whether a stage begins so

# --- Everything that is wrong with site.env, at once
problems=()
filled_in() {
    local name
    for name in "$@"; do
        case ${!name-CHANGE_ME} in *CHANGE_ME*) problems+=("$name=CHANGE_ME is to be filled in") ;; esac
    done
}
filled_in ACCOUNT
command -v sbatch > /dev/null || problems+=("there is no sbatch on $(hostname): Slurm's login node is the place for this")
if has prepare_data || has convert; then filled_in CPU_PARTITION; fi
if has train || has evaluate; then filled_in GPU_PARTITION; fi
if has train; then filled_in INTERFACE; fi
if has prepare_data; then
    filled_in CORPUS TOKENIZER
    for source in $CORPUS; do
        [ -e "$source" ] || [[ $source == *CHANGE_ME* ]] || problems+=("CORPUS: $source does not exist")
    done
    case $TOKENIZER in bytes | *CHANGE_ME*) ;; *) [ -f "$TOKENIZER" ] || problems+=("TOKENIZER=$TOKENIZER does not exist") ;; esac
    case $SHARDS in *://*) problems+=("SHARDS=$SHARDS: prepare_data needs a folder that all nodes see; data_prep.upload_shards copies it there then") ;; esac
    [[ $PREPARE_JOBS =~ ^[1-9][0-9]*$ ]] || problems+=("PREPARE_JOBS=$PREPARE_JOBS must be a number above 0")
fi
if has evaluate; then
    filled_in PROBLEMS
    case $PROBLEMS in *CHANGE_ME*) ;; *) [ -f "$PROBLEMS" ] || problems+=("PROBLEMS=$PROBLEMS does not exist") ;; esac
fi
if [ ${#problems[@]} -gt 0 ]; then fail "slurm/site.env$(printf '\n  - %s' "${problems[@]}")"; fi

# --- The stages' own inputs; what an earlier stage will write need not be there
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
            [ -n "$run" ] || fail "convert which run? slurm/submit.sh convert -- $RUNS/7B_200B_n4"
            has train || [ -d "$run/checkpoints" ] || fail "$run is no run's folder: it has no checkpoints/"
            ;;
        evaluate)
            if [ -n "$run" ]; then export_=$EXPORTS/$(basename "$run"); else export_=${arguments[0]:-}; fi
            [ -n "$export_" ] || fail "evaluate which model? slurm/submit.sh evaluate -- $EXPORTS/7B_200B_n4"
            has convert || [ -d "$export_" ] || fail "$export_ does not exist"
            ;;
    esac
done

# --- Queue them
read -ra common <<< "$SBATCH_OPTIONS"
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
        sbatch --test-only --quiet "${common[@]}" "$@" 2> "$complaints" || fail "Slurm would not take $what: $(cat "$complaints")"
    else
        id=$(sbatch --parsable "${common[@]}" ${previous:+--dependency=afterok:"$previous"} "$@") || fail "$what was refused"
        previous=${id%%;*}
        printf '%-14s job %s%s\n' "$what" "$previous" "${dependents:-}"
        dependents=", when the one above has succeeded"
    fi
}
submit_all() {
    for stage in "${stages[@]}"; do
        case $stage in
            prepare_data)
                case $PREPARE_OPTIONS in
                    *"--dedup exact"* | *"--dedup near"*) submit "survey" "${cpu[@]}" --array=1-"$PREPARE_JOBS" slurm/prepare_data.sbatch survey ;;
                esac
                submit "write shards" "${cpu[@]}" --array=1-"$PREPARE_JOBS" slurm/prepare_data.sbatch write
                submit "merge" "${cpu[@]}" --output=slurm-%j-%x.log slurm/prepare_data.sbatch merge
                ;;
            train_*) submit "$stage" "${training[@]}" "slurm/$stage.sbatch" "${arguments[@]}" ;;
            convert) submit convert "${cpu[@]}" slurm/convert.sbatch "$run" ;;
            evaluate) submit evaluate "${one_gpu[@]}" slurm/evaluate.sbatch "$export_" ;;
        esac
    done
}
complaints=$(mktemp)
trap 'rm -f "$complaints"' EXIT
trial=1
submit_all
if [ -n "${DRY_RUN:-}" ]; then
    echo "Everything is in order; nothing was queued."
    exit
fi
trial=
submit_all

echo
echo "Watch:    squeue --me; each job's output is slurm-<job>-<stage>.log here"
if has train; then
    echo "          $run/train.log and ranks/; tensorboard --logdir $run/tensorboard"
    echo "Stop:     scancel <job>; it saves first. The same command goes on from there."
fi
