#!/usr/bin/env bash
# usage: babysit.sh [--dry-run] RUN COMMAND...
#
# Sees a run through: asks for the pod, installs, looks at the hosts, mounts $BUCKET, launches, and from then on looks
# every INTERVAL seconds (60). A pod that was taken away is asked for again; a run that ended on a host before its time is
# ended on all and launched again, and goes on from its last checkpoint, which must lie in ~/bucket. Returns when every
# host is done. It holds nothing in memory: killed at any moment and started again, it goes on from what it finds. The
# settings are those of create.sh and mount.sh. A run that fails FAILURES times (10) in a row, with no step saved between,
# say, is given up: pod and logs stay for you to look at.
# shellcheck source=tpu_setup/common.sh
. "$(dirname "$0")/common.sh"
need POD ZONE TYPE BUCKET
[ $# -ge 2 ] || { usage >&2; exit 2; }
here=$(dirname "$0")
id=$1
if [ "$dry_run" = 1 ]; then
  for script in create install preflight mount; do "$here/$script.sh" --dry-run; done
  "$here/launch.sh" --dry-run "$@"
  "$here/status.sh" --dry-run "$id"
  exit
fi

# One babysitter a pod on this machine; the lock ends with the process.
exec 9> "${XDG_RUNTIME_DIR:-/tmp}/jdiff-babysit-$POD.lock"
flock -n 9 || die "another babysitter of $POD runs here"

say() { echo "$(date -u +%H:%M:%S) $*"; }

begin() { # whatever of it is done already is left as it is
  "$here/install.sh" 9>&- && "$here/preflight.sh" 9>&- && "$here/mount.sh" 9>&- && "$here/launch.sh" "$@" 9>&-
}

failures=0
while :; do
  state=$(pod_state 9>&-) || state=UNKNOWN
  case "$state" in
    NONE)
      say "asking for $POD"
      "$here/create.sh" 9>&- || say "was refused; asking again later"
      ;;
    FAILED | SUSPENDED)
      say "$POD is $state: giving it back, to ask anew"
      "$here/teardown.sh" 9>&- || say "could not be given back; trying again later"
      continue
      ;;
    ACTIVE)
      states=$("$here/status.sh" "$id" 9>&- | sed -n 's/^host.*: //p' | sort -u | xargs) || states=
      case "$states" in
        "done") say "$id is done" && exit 0 ;;
        running | "done running") failures=0 ;;
        *)
          say "$id on $POD: ${states:-a host does not answer}; (re)starting it"
          if [[ $states = *failed* ]] && ((++failures > ${FAILURES:-10})); then
            die "$id has failed $failures times in a row; $here/logs.sh $id shows why"
          fi
          [[ $states != *running* ]] || "$here/stop.sh" "$id" 9>&- || true
          begin "$@" || say "did not start; trying again later"
          ;;
      esac
      ;;
    *) say "$POD is $state" ;;
  esac
  sleep "${INTERVAL:-60}"
done
