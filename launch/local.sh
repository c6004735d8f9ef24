#!/usr/bin/env bash
# Pre-train on several processes of this machine, one per GPU unless -n says otherwise:
#   launch/local.sh [-n PROCESSES] [--restarts N] [--dry-run] RECIPE [key=value …] [--out RUN]
# With --restarts, processes that die are started again N times at most; it implies --resume.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
usage() {
  echo "usage: launch/local.sh [-n PROCESSES] [--restarts N] [--dry-run] RECIPE [key=value …]" >&2
  exit 2
}
processes="" dry="" restarts=0
while [ $# -gt 0 ]; do
  case "$1" in
    -n) [ $# -ge 2 ] || usage; processes=$2; shift 2 ;;
    --restarts) [ $# -ge 2 ] || usage; restarts=$2; shift 2 ;;
    -h | --help) help ;;
    --dry-run) dry=yes; shift ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || usage
processes=$(count_processes "$processes")
settings "$processes"
command=("$(program torchrun)" --standalone --nproc-per-node "$processes" "${signals[@]}")
[ "$restarts" = 0 ] || command+=(--max-restarts "$restarts")
command+=(-m crossloom pretrain "$@")
[ "$restarts" = 0 ] || command+=(--resume)
export CROSSLOOM_LAUNCHER=$$ # what torchrun starts ends with it, however early it dies
start "$dry" "${command[@]}"
