# shellcheck shell=bash disable=SC2154 # launch.sh sets the variables
# Checks a node before ranks start on it: prints one line for each problem. Runs once on every node.
problem() {
    echo "slurm: error: node ${SLURMD_NODENAME:-}: $*" >&2
    exit_code=1
}
exit_code=0
trap 'exit 75' USR1 TERM

[ -f pipeline/train.py ] || problem "cannot see the repository"
[ -e "/sys/class/net/$INTERFACE" ] || problem "has no network interface $INTERFACE (it has: $(cd /sys/class/net && echo *))"
[ -w "$run_dir" ] || problem "cannot write to $run_dir"
[ -w "$NODE_SCRATCH" ] || problem "cannot write to $NODE_SCRATCH"
python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || problem "has no Python 3.11 or newer"
if [ "$DEVICE" = cuda ]; then
    found=$(nvidia-smi --list-gpus | grep -c ^GPU)
    [ "$found" = "$RANKS_PER_NODE" ] || problem "has $found working GPUs instead of $RANKS_PER_NODE"
fi
exit $exit_code
