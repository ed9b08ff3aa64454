#!/usr/bin/env bash
# usage: host.sh start RUN COMMAND... | state RUN | stop RUN | log RUN
#
# On one host: a command that goes on when the connection ends, known by the id of its run.
#   start   starts it, unless it runs
#   state   prints "host NAME: " and running, done, stopped (told to, and saved), failed, or absent
#   stop    asks it to end, and ends it after GRACE seconds
#   log     prints the end of what it has said
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
verb=$1 id=$2
shift 2
case "$id" in *[!A-Za-z0-9._-]* | .* | -*) echo "RUN: $id is not letters, digits, dots, dashes" >&2; exit 2 ;; esac
folder=~/jdiff-runs/$id
mkdir -p "$folder"

alive() { # the process that wrote the pid is the one that still has it
  local pid started
  [ -e "$folder/pid" ] || return 1
  read -r pid started < "$folder/pid"
  [ "$(birth "$pid")" = "$started" ]
}

birth() { # when a process started, in ticks since the machine did; nothing where there is none or it is a zombie
  awk '{ sub(/.*\) /, ""); if ($1 != "Z") print $20 }' "/proc/$1/stat" 2> /dev/null || true
}

start() {
  exec 9> "$folder/lock"
  flock 9
  if alive; then return; fi
  rm -f "$folder/status" "$folder/pid"
  [ ! -e "$folder/log" ] || cat "$folder/log" >> "$folder/log.before"
  : > "$folder/log"
  # A session of its own: it outlives the connection, and is ended as a whole. It says itself who it is before it lets go
  # of the lock, so that nothing that happens to this shell makes a second one.
  export -f birth
  # shellcheck disable=SC2016  # the inner shell expands it
  setsid bash -c '
    echo "$$ $(birth $$)" > "$1/pid.new" && mv "$1/pid.new" "$1/pid"
    exec 9>&-
    "${@:2}"
    echo $? > "$1/status.new" && mv "$1/status.new" "$1/status"' \
    jdiff-run "$folder" "$@" >> "$folder/log" 2>&1 < /dev/null &
  local tenth
  for ((tenth = 0; tenth < 300; tenth++)); do
    [ ! -e "$folder/pid" ] || return 0
    sleep 0.1
  done
  echo "the command did not start" >&2
  return 1
}

state() {
  if alive; then
    echo running
  elif [ ! -e "$folder/pid" ]; then
    echo absent
  elif [ "$(cat "$folder/status" 2> /dev/null)" != 0 ]; then
    echo failed
  elif grep -q '^stopped after step' "$folder/log"; then
    echo stopped
  else
    echo "done"
  fi
}

stop() {
  alive || return 0
  local pid second
  read -r pid _ < "$folder/pid"
  kill -TERM -- "-$pid" 2> /dev/null || true
  for ((second = 0; second < 10 * ${GRACE:-60}; second++)); do
    alive || return 0
    sleep 0.1
  done
  kill -KILL -- "-$pid" 2> /dev/null || true
}

case "$verb" in
  start) start "$@" ;;
  state) echo "host ${HOST_NAME:-$(hostname)}: $(state)" ;;
  stop) stop ;;
  log) tail -n "${LINES_SHOWN:-20}" "$folder/log" | sed "s/^/${HOST_NAME:-$(hostname)}: /" ;;
  *) echo "there is no verb $verb" >&2; exit 2 ;;
esac
