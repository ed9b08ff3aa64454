#!/usr/bin/env bash
# usage: mount.sh [--dry-run]
#
# Mounts the Cloud Storage bucket $BUCKET on every host of $POD in $ZONE, at ~/bucket, where it is not mounted yet. Runs
# belong there: what is on the hosts themselves goes with the pod.
# shellcheck source=tpu_setup/common.sh
. "$(dirname "$0")/common.sh"
need POD ZONE BUCKET
# shellcheck disable=SC2016  # the hosts expand it
mount='set -e
if mountpoint -q ~/bucket; then exit 0; fi
if ! command -v gcsfuse > /dev/null; then
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
  sudo apt-get update -q && sudo apt-get install -qy gcsfuse
fi
mkdir -p ~/bucket
gcsfuse --implicit-dirs '$(quoted "$BUCKET")' ~/bucket'
on_each_retry "$mount"
