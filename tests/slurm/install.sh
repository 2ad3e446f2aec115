#!/bin/bash
# Installs the Slurm that `make test-slurm` runs, and the SSH of its nodes, unless they are there; on Debian and Ubuntu, as
# root. dropbear-bin is an SSH server that is no service: none runs on this machine afterwards.
set -euo pipefail
is_there() { for name in slurmctld slurmd munged ip pdsh dropbear ssh; do command -v "$name" > /dev/null || return 1; done; }
if is_there; then exit 0; fi

fail() {
    echo "Slurm is not installed, and $1: install slurmctld, slurmd, munge, iproute2, pdsh, dropbear and ssh" >&2
    exit 2
}
command -v apt-get > /dev/null || fail "this is no Debian or Ubuntu"
[ "$(id -u)" = 0 ] || fail "only root can do that"
packages=(slurm-wlm munge iproute2 pdsh dropbear-bin openssh-client)
echo "Installing Slurm (${packages[*]})"
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
apt-get install --quiet=2 --no-install-recommends "${packages[@]}" > /dev/null
