#!/usr/bin/env bash
# Pre-train on several processes of this machine:
#   launch/local.sh [-n PROCESSES] [--dry-run] RECIPE [key=value …] [--out RUN] [--resume]
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
processes="" dry=""
while [ $# -gt 0 ]; do
  case "$1" in
    -n) processes=$2; shift 2 ;;
    --dry-run) dry=yes; shift ;;
    *) break ;;
  esac
done
if [ $# -eq 0 ]; then
  echo "usage: launch/local.sh [-n PROCESSES] [--dry-run] RECIPE [key=value …]" >&2
  exit 2
fi
if [ -z "$processes" ]; then
  processes=$(nvidia-smi -L 2>/dev/null | wc -l)
  [ "$processes" -gt 0 ] || processes=1
fi
torchrun=torchrun
[ -x "$here/.venv/bin/torchrun" ] && torchrun="$here/.venv/bin/torchrun"
# without this each process would start a thread for every core
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + processes - 1) / processes))}"
command=("$torchrun" --standalone --nproc-per-node "$processes" -m crossloom pretrain "$@")
if [ -n "$dry" ]; then
  echo "OMP_NUM_THREADS=$OMP_NUM_THREADS ${command[*]}"
else
  exec "${command[@]}"
fi
