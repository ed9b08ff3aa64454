#!/usr/bin/env bash
# usage: teardown.sh [--dry-run]
#
# Gives $POD in $ZONE back, whatever runs there: it costs nothing from then on. Fine where there is none. What is in the
# bucket stays.
# shellcheck source=tpu_setup/common.sh
. "$(dirname "$0")/common.sh"
need POD ZONE
state=ACTIVE
[ "$dry_run" = 1 ] || state=$(pod_state)
if [ "$state" = NONE ]; then
  echo "there is no $POD"
  exit
fi
mapfile -t place < <(where)
retry gcloud compute tpus queued-resources delete "$POD" --force --quiet "${place[@]}"
