#!/usr/bin/env bash
# Pre-train on the machines of a hostfile (lines of "HOST slots=PROCESSES"), by DeepSpeed's launcher:
#   launch/deepspeed.sh [--hostfile FILE] [--port PORT] [--dry-run] RECIPE [key=value …] [--out RUN]
# It reaches other machines by ssh (pdsh), without a password; this repository must lie at the same
# path on each. Without a hostfile, the GPUs of this machine.
# The launcher does not choose what spreads the model over processes: the recipe does.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"
usage() {
  echo "usage: launch/deepspeed.sh [--hostfile FILE] [--port PORT] [--dry-run]" \
    "RECIPE [key=value …]" >&2
  exit 2
}
hostfile="" port=29500 dry=""
while [ $# -gt 0 ]; do
  case "$1" in
    --hostfile) [ $# -ge 2 ] || usage; hostfile=$2; shift 2 ;;
    --port) [ $# -ge 2 ] || usage; port=$2; shift 2 ;;
    -h | --help) help ;;
    --dry-run) dry=yes; shift ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || usage
most=1
if [ -n "$hostfile" ]; then
  if [ ! -r "$hostfile" ]; then
    echo "error: --hostfile $hostfile: cannot be read" >&2
    exit 2
  fi
  if wrong=$(grep -vnE '^[[:space:]]*(#.*)?$|^[^[:space:]]+[[:space:]]+slots=[1-9][0-9]*[[:space:]]*$' \
    "$hostfile"); then
    echo "error: $hostfile:${wrong%%$'\n'*}: write HOST slots=PROCESSES" >&2
    exit 2
  fi
  most=$(sed -n 's/.*slots=\([0-9]*\).*/\1/p' "$hostfile" | sort -n | tail -1)
  [ -n "$most" ] || { echo "error: $hostfile: names no machine" >&2; exit 2; }
else
  most=$(count_processes "")
fi
settings "$most"
command=("$(program deepspeed)" --master_port "$port" --no_local_rank)
[ -z "$hostfile" ] || command+=(--hostfile "$hostfile")
start "$dry" "${command[@]}" --module crossloom pretrain "$@"
