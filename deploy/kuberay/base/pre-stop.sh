#!/usr/bin/env bash
# Runs in a Ray container that is about to stop. Where the run's driver lives (the head), it is asked to stop: it ends
# its step, writes a checkpoint and exits. Elsewhere the pools' processes are waited for, so that they live until the
# driver has what it needs of them; a node without any goes at once. The grace period of the container bounds it all.
set -u

driver='^[^ ]*python[0-9.]* -m cluster train'
processes="$driver|^ray::(Concurrent)?Worker|^ray::ServeReplica"

# Once only: a second signal ends the driver without a checkpoint.
pkill -TERM -f -- "$driver"
while pgrep -f -- "$processes" >/dev/null; do
  sleep 1
done
