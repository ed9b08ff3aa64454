#!/usr/bin/env bash
# usage: create.sh [--dry-run]
#
# Asks for the pod $POD of $TYPE (v5p-16, v5litepod-256, v6e-64, ...) in $ZONE as a queued resource, and returns; a pod
# of that name that is there or asked for already is left as it is. SPOT=1 asks for one that may be taken away at any
# time, for less. RUNTIME is the software version of the hosts, by default the one for the type.
# shellcheck source=tpu_setup/common.sh
. "$(dirname "$0")/common.sh"
need POD ZONE TYPE
case "$TYPE" in
  v5p-*) version=v2-alpha-tpuv5 ;;
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v6e-*) version=v2-alpha-tpuv6e ;;
  v4-*) version=tpu-ubuntu2204-base ;;
  *) version=${RUNTIME:-} && [ -n "$version" ] || die "TYPE: $TYPE is none that is known here; set RUNTIME as well" ;;
esac
spot=()
[ "${SPOT:-0}" = 0 ] || spot=(--spot)
state=NONE
[ "$dry_run" = 1 ] || state=$(pod_state)
if [ "$state" != NONE ]; then
  echo "$POD is $state"
  exit
fi
mapfile -t place < <(where)
ask() {
  run gcloud compute tpus queued-resources create "$POD" "--node-id=$POD" "--accelerator-type=$TYPE" \
    "--runtime-version=${RUNTIME:-$version}" "${place[@]}" "${spot[@]}"
}
# Two that ask at once ask for one pod: the name is the same, and the second is refused.
ask || { state=$(pod_state) && [ "$state" != NONE ] && echo "$POD is $state"; }
