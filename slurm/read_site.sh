# shellcheck shell=bash
# Reads slurm/site.env, for submit.sh and launch.sh, which define `fail`. Settings that cannot be read to their end, or that
# print, are refused: the output of jobs and of checks would be mixed with theirs, and a job would end with "success".
end_of_settings="all settings are read"
said=$(bash -euc '. slurm/site.env; echo "$0"' "$end_of_settings" 2>&1) ||
    fail "$said (lines must be NAME=value, without spaces around =, and with quotes around values that have spaces)"
case $said in
    "$end_of_settings") ;;
    *"$end_of_settings") fail "slurm/site.env prints \"${said%"$end_of_settings"}\"; it must only set variables: take out what prints" ;;
    *) fail "slurm/site.env ends the shell that reads it${said:+, and prints \"$said\"}; it must only set variables: take out \"exit\" and \"exec\"" ;;
esac
. slurm/site.env
