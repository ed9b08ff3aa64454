# shellcheck shell=bash
# Sourced by the scripts beside it: settings, --dry-run, retries, and what they all ask of gcloud.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export root

# The usage is the comment at the top of each script.
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; }

dry_run=0
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) dry_run=1 ;;
    -h | --help) usage; exit 0 ;;
    *) break ;;
  esac
  shift
done

die() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

need() { # names of settings
  local name
  for name in "$@"; do
    [ -n "${!name:-}" ] || die "set $name, as in: export $name=...; $(basename "$0") --help says more"
    case "${!name}" in -*) die "$name: ${!name} begins with a dash" ;; esac
  done
}

run() { # prints the command in a dry run, else runs it
  if [ "$dry_run" = 1 ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

RETRIES=${RETRIES:-5} WAIT=${WAIT:-10}

retry() { # runs a command until it succeeds, RETRIES times at most, WAIT seconds apart
  local try
  for ((try = 1; try < RETRIES; try++)); do
    run "$@" && return
    echo "try $try of $RETRIES failed: $1 ${2:-} ${3:-} ${4:-} ${5:-}" >&2
    sleep "$WAIT"
  done
  run "$@"
}

where() { printf '%s\n' "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"}; }

tpu() { # verb, then its arguments
  local verb=$1 place
  shift
  mapfile -t place < <(where)
  gcloud compute tpus tpu-vm "$verb" "$@" "${place[@]}"
}

queue() { # verb, then its arguments
  local verb=$1 place
  shift
  mapfile -t place < <(where)
  gcloud compute tpus queued-resources "$verb" "$@" "${place[@]}"
}

on_all() { # a command for the shell of every host
  local place
  mapfile -t place < <(where)
  run gcloud compute tpus tpu-vm ssh "$POD" --worker=all "--command=$1" "${place[@]}"
}

on_each_retry() {
  local try
  for ((try = 1; try < RETRIES; try++)); do
    on_all "$1" && return
    echo "try $try of $RETRIES failed on a host" >&2
    sleep "$WAIT"
  done
  on_all "$1"
}

quoted() { printf '%q ' "$@"; }

# ACTIVE, WAITING_FOR_RESOURCES, ...; NONE where there is no such pod; fails where gcloud cannot say.
pod_state() {
  local said
  if said=$(queue describe "$POD" '--format=value(state.state)' 2>&1); then
    echo "$said" | tail -n 1
  elif grep -qi 'not.found' <<< "$said"; then
    echo NONE
  else
    echo "$said" >&2
    return 1
  fi
}
