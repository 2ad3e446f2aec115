# shellcheck shell=bash disable=SC2154 # the launch body sets the variables
# What a node must have before ranks start on it; each thing that is missing is one line. Runs once on every node.
problem() {
    echo "slurm: error: node ${SLURMD_NODENAME:-}: $*" >&2
    exit_code=1
}
exit_code=0
trap 'exit 75' USR1 TERM

[ -f pipeline/train.py ] || problem "does not see the repository"
[ -e "/sys/class/net/$INTERFACE" ] || problem "has no network interface $INTERFACE (it has: $(cd /sys/class/net && echo *))"
[ -w "$run_dir" ] || problem "cannot write to $run_dir"
[ -w "$NODE_SCRATCH" ] || problem "cannot write to $NODE_SCRATCH"
python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || problem "has no Python 3.11 or newer"
if [ "$DEVICE" = cuda ]; then
    found=$(nvidia-smi --list-gpus | grep -c ^GPU)
    [ "$found" = "$RANKS_PER_NODE" ] || problem "has $found GPUs that work, not $RANKS_PER_NODE"
fi
exit $exit_code
