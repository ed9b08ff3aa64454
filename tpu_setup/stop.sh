#!/usr/bin/env bash
# usage: stop.sh [--dry-run] RUN
#
# Ends a run on every host of $POD in $ZONE, saved: it is asked to, and after a minute it is made to.
# shellcheck source=tpu_setup/common.sh
. "$(dirname "$0")/common.sh"
need POD ZONE
[ $# = 1 ] || { usage >&2; exit 2; }
on_all "bash ~/jdiff/tpu_setup/host.sh stop $(quoted "$1")"
