#!/bin/bash
# Installs the Slurm that `make test-slurm` runs, unless it is there; on Debian and Ubuntu, as root.
set -euo pipefail
if command -v slurmctld > /dev/null && command -v slurmd munged ip > /dev/null; then exit 0; fi

fail() {
    echo "Slurm is not installed, and $1: install slurmctld, slurmd, munge and iproute2" >&2
    exit 2
}
command -v apt-get > /dev/null || fail "this is no Debian or Ubuntu"
[ "$(id -u)" = 0 ] || fail "only root can do that"
echo "Installing Slurm (slurm-wlm, munge, iproute2)"
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
apt-get install --quiet=2 --no-install-recommends slurm-wlm munge iproute2 > /dev/null
