#!/usr/bin/env bash
# usage: launch.sh [--dry-run] RUN COMMAND...
#
# Starts a command on every host of $POD in $ZONE, in ~/jdiff, under the id RUN; a host where it runs is left alone. It
# goes on when the connection ends: status.sh, logs.sh and babysit.sh know it by RUN.
# shellcheck source=tpu_setup/common.sh
. "$(dirname "$0")/common.sh"
need POD ZONE
[ $# -ge 2 ] || { usage >&2; exit 2; }
# Hosts find each other by what the pod says of itself, unless they are told.
# shellcheck disable=SC2016  # the hosts expand it
start='cd ~/jdiff && PATH=~/jdiff-venv/bin:$PATH JAX_NUM_PROCESSES=${JAX_NUM_PROCESSES:-auto} bash tpu_setup/host.sh start '
on_all "$start$(quoted "$@")"
