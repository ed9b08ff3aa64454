#!/usr/bin/env bash
# Installs this checkout on an existing TPU VM and runs a command there. README.md beside this file says what is untested.
set -euo pipefail

usage() {
  cat << 'END'
usage: tpu_setup/run_on_all_hosts.sh [--dry-run] NAME ZONE COMMAND...

  NAME, ZONE   an existing TPU VM, as `gcloud compute tpus tpu-vm list` shows it
  COMMAND...   run on the TPU VM inside the checkout, for example: jdiff train experiments/openmoji.py
  --dry-run    print the commands and run nothing

What is committed is sent; what is not is left behind. A TPU of several hosts is refused.
END
}

dry_run=0
if [ "${1:-}" = "--dry-run" ]; then
  dry_run=1
  shift
fi
if [ $# -lt 3 ]; then
  usage >&2
  exit 2
fi
name=$1 zone=$2
shift 2
case "$name$zone" in -*) usage >&2; exit 2 ;; esac

run() {
  if [ "$dry_run" = 1 ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu() { # verb, then its arguments
  local verb=$1
  shift
  run gcloud compute tpus tpu-vm "$verb" "$@" --zone="$zone"
}

root=$(cd "$(dirname "$0")/.." && pwd)
archive=$(mktemp -d)/jdiff.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT

hosts=$(tpu describe "$name" '--flatten=networkEndpoints[]' '--format=value(networkEndpoints.ipAddress)')
if [ "$dry_run" = 1 ]; then
  echo "$hosts"
elif [ "$(wc -w <<< "$hosts")" != 1 ]; then
  echo "$name must have one host, got $(wc -w <<< "$hosts"): several have not been tried on a TPU yet" >&2
  exit 1
fi

run git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
tpu scp "$archive" "$name:jdiff.tar.gz" --worker=all

install='set -e
python3 -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "python3 must be 3.11 or newer" >&2; exit 1; }
mkdir -p ~/jdiff
tar -xzf ~/jdiff.tar.gz -C ~/jdiff
python3 -m venv ~/jdiff-venv
~/jdiff-venv/bin/pip install -q "jax[tpu]" -e ~/jdiff'
tpu ssh "$name" --worker=all "--command=$install"

printf -v words '%q ' "$@"
# shellcheck disable=SC2088  # the TPU VM expands the tilde
tpu ssh "$name" --worker=all "--command=cd ~/jdiff && PATH=~/jdiff-venv/bin:\$PATH $words"
