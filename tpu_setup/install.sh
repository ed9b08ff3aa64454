#!/usr/bin/env bash
# usage: install.sh [--dry-run]
#
# Puts the committed state of this checkout and its packages on every host of $POD in $ZONE, in ~/jdiff and
# ~/jdiff-venv. What is there already in this version is left as it is; what fails is tried again.
# shellcheck source=tpu_setup/common.sh
. "$(dirname "$0")/common.sh"
need POD ZONE
commit=$(git -C "$root" rev-parse HEAD)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
run git -C "$root" archive --format=tar.gz "--output=$work/jdiff.tar.gz" HEAD
mapfile -t place < <(where)
retry gcloud compute tpus tpu-vm scp "$work/jdiff.tar.gz" "$POD:jdiff.tar.gz" --worker=all "${place[@]}"
# The mark is written last: a host that was cut off installs anew.
# shellcheck disable=SC2016  # the hosts expand it
install='set -e
commit='$commit'
[ "$(cat ~/jdiff-installed 2> /dev/null || true)" != "$commit" ] || exit 0
python=""
for candidate in python3.13 python3.12 python3.11 python3; do
  if "$candidate" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))" 2> /dev/null; then
    python=$candidate; break
  fi
done
if [ -z "$python" ]; then
  sudo apt-get update -q && sudo apt-get install -qy python3.11 python3.11-venv && python=python3.11
fi
mkdir -p ~/jdiff && tar -xzf ~/jdiff.tar.gz -C ~/jdiff
"$python" -m venv ~/jdiff-venv
~/jdiff-venv/bin/pip install -q --retries 5 -e ~/jdiff"[tpu,data]"
echo "$commit" > ~/jdiff-installed'
on_each_retry "$install"
