#!/usr/bin/env bash
# usage: status.sh [--dry-run] [RUN]
#
# What $POD in $ZONE is (ACTIVE, WAITING_FOR_RESOURCES, ..., NONE) and, with RUN, what the run does on each host.
# shellcheck source=tpu_setup/common.sh
. "$(dirname "$0")/common.sh"
need POD ZONE
if [ "$dry_run" = 1 ]; then
  mapfile -t place < <(where)
  run gcloud compute tpus queued-resources describe "$POD" '--format=value(state.state)' "${place[@]}"
  state=ACTIVE
else
  state=$(pod_state)
  echo "pod $POD: $state"
fi
if [ $# -gt 0 ] && [ "$state" = ACTIVE ]; then
  on_all "bash ~/jdiff/tpu_setup/host.sh state $(quoted "$1")"
fi
