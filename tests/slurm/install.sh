#!/bin/bash
# Installs Slurm for `make test-slurm`, and SSH for its nodes, if they are missing; on Debian and Ubuntu, as root.
# dropbear-bin is an SSH server without a service, so that no server runs on this machine afterwards.
set -euo pipefail
is_installed() { for name in slurmctld slurmd munged ip pdsh dropbear ssh; do command -v "$name" > /dev/null || return 1; done; }
if is_installed; then exit 0; fi

fail() {
    echo "Slurm is not installed, and $1: install slurmctld, slurmd, munge, iproute2, pdsh, dropbear and ssh" >&2
    exit 2
}
command -v apt-get > /dev/null || fail "this system is neither Debian nor Ubuntu"
[ "$(id -u)" = 0 ] || fail "only root can install it"
packages=(slurm-wlm munge iproute2 pdsh dropbear-bin openssh-client)
echo "Installing Slurm (${packages[*]})"
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
apt-get install --quiet=2 --no-install-recommends "${packages[@]}" > /dev/null
