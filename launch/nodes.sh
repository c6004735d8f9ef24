#!/usr/bin/env bash
# Pre-train on several machines: run this on each of them, with its own --node.
#   launch/nodes.sh --nodes 2 --node 0 --at HOST:PORT [-n PROCESSES] [--local-addr ADDRESS]
#                   [--restarts N] [--dry-run] RECIPE [key=value …] [--out RUN] [--resume]
# HOST is the machine of --node 0, by a name or address that all others reach; ADDRESS is how they
# reach this one, where its host name does not say so. --out must be on a disk that all share.
# With --restarts, when a process or a machine dies the rest is started again, N times at most, from
# the newest checkpoint, as soon as all machines are there; --restarts implies --resume.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
usage() {
  echo "usage: launch/nodes.sh --nodes N --node K --at HOST:PORT [-n PROCESSES]" \
    "[--local-addr ADDRESS] [--restarts N] [--dry-run] RECIPE [key=value …]" >&2
  exit 2
}
nodes="" node="" at="" processes="" address="" dry="" restarts=0
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) help ;;
    --dry-run) dry=yes; shift; continue ;;
    --nodes | --node | --at | -n | --local-addr | --restarts) [ $# -ge 2 ] || usage ;;
    *) break ;;
  esac
  case "$1" in
    --nodes) nodes=$2 ;;
    --node) node=$2 ;;
    --at) at=$2 ;;
    -n) processes=$2 ;;
    --local-addr) address=$2 ;;
    --restarts) restarts=$2 ;;
  esac
  shift 2
done
[ $# -gt 0 ] && [ -n "$nodes" ] && [ -n "$node" ] && [ -n "$at" ] || usage
case "$at" in
  *:*[0-9]) ;;
  *) echo "error: --at $at: write HOST:PORT, of the machine of --node 0" >&2; exit 2 ;;
esac
processes=$(count_processes "$processes")
settings "$processes"
# which machine keeps the meeting point is said, not guessed from host names
keeps=$([ "$node" = 0 ] && echo true || echo false)
command=("$(program torchrun)" --nnodes "$nodes" --nproc-per-node "$processes" "${signals[@]}"
  --rdzv-backend c10d --rdzv-endpoint "$at" --rdzv-id "${CROSSLOOM_JOB:-crossloom}"
  --rdzv-conf "is_host=$keeps")
[ -z "$address" ] || command+=(--local-addr "$address")
[ "$restarts" = 0 ] || command+=(--max-restarts "$restarts")
command+=(-m crossloom pretrain "$@")
[ "$restarts" = 0 ] || command+=(--resume)
export CROSSLOOM_LAUNCHER=$$ # what torchrun starts ends with it, however early it dies
start "$dry" "${command[@]}"
