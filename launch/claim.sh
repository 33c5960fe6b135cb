#!/usr/bin/env bash
# The experiment of configs/claim_emoji.py on one accelerator: trains every model, then sweeps all of them.
#   bash launch/claim.sh [MODEL-SEED ...]     e.g. baseline-0 combined-0; without arguments all of the sweep
# JOBS trainings run beside each other (2): so small a net does not fill a device. What is finished is not done again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

jobs="${JOBS:-2}"
models=("$@")
if ((${#models[@]} == 0)); then
  models=(baseline-{0,1,2} combined-{0,1,2} {text,bbox,blob,voken,oracle,wide,eta01,uncond30}-0)
fi
# Each process would otherwise take most of the device's memory.
export XLA_CLIENT_MEM_FRACTION="${XLA_CLIENT_MEM_FRACTION:-$(python3 -c "print(round(0.9 / $jobs, 2))")}"

echo "==> training ${#models[@]} models, $jobs at a time"
mkdir -p runs/claim
# shellcheck disable=SC2016 # $1 is the inner shell's
printf '%s\n' "${models[@]}" | xargs -P "$jobs" -I{} bash -c \
  'python -m kaleido_jax.main --config="configs/claim_emoji.py:$1" --workdir="runs/claim/$1" >"runs/claim/$1.log" 2>&1 ||
   { tail -n 3 "runs/claim/$1.log" >&2; exit 1; }' _ {}

if (($# == 0)); then
  unset XLA_CLIENT_MEM_FRACTION
  echo "==> python -m kaleido_jax.main evaluate --sweep=configs/sweep_emoji.py:claim --workdir=runs/claim/sweep"
  exec python -m kaleido_jax.main evaluate --sweep=configs/sweep_emoji.py:claim --workdir=runs/claim/sweep
fi
