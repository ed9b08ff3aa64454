#!/usr/bin/env bash
# usage: preflight.sh [--dry-run]
#
# Looks at every host of $POD in $ZONE before a run is paid for: chips and their memory, speed of memory and of products
# of matrices, the clock, room on the disk. A line of JSON a host; fails where a host does, or where HOSTS is set and
# another number of hosts has answered.
# shellcheck source=tpu_setup/common.sh
. "$(dirname "$0")/common.sh"
need POD ZONE
# shellcheck disable=SC2088  # the hosts expand it
look='~/jdiff-venv/bin/python ~/jdiff/tpu_setup/preflight.py'
if [ "$dry_run" = 1 ]; then
  on_all "$look"
  exit
fi
status=0
said=$(on_all "$look") || status=$?
echo "$said"
answered=$(grep -c '"host"' <<< "$said" || true)
[ "$status" = 0 ] || { echo "a host does not pass" >&2; exit 1; }
[ "$answered" -gt 0 ] && [ "$answered" = "${HOSTS:-$answered}" ] || {
  echo "$answered hosts have answered, ${HOSTS:-at least one} should" >&2
  exit 1
}
# Hosts are asked one after another or at once: a minute covers either.
sed -n 's/.*"time": \([0-9]*\).*/\1/p' <<< "$said" | sort -n | awk 'NR == 1 { first = $1 } { last = $1 }
  END { if (last - first > 60) { print "clocks differ by " last - first " s" > "/dev/stderr"; exit 1 } }'
