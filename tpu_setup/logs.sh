#!/usr/bin/env bash
# usage: logs.sh [--dry-run] RUN
#
# The last lines that a run has said on each host of $POD in $ZONE.
# shellcheck source=tpu_setup/common.sh
. "$(dirname "$0")/common.sh"
need POD ZONE
[ $# = 1 ] || { usage >&2; exit 2; }
on_all "bash ~/jdiff/tpu_setup/host.sh log $(quoted "$1")"
