#!/usr/bin/env bash
# One run on all hosts of a TPU VM or pod slice. Arguments behind the options are those of `python -m kaleido_jax.main`:
#   bash launch/tpu_vm.sh --name=my-v5p --zone=us-east5-a setup
#   bash launch/tpu_vm.sh --name=my-v5p --zone=us-east5-a train --config=imagenet_combined --workdir=/mnt/runs/a \
#     --config.mesh.data=1 --config.mesh.fsdp=-1
#   bash launch/tpu_vm.sh --name=my-v5p --zone=us-east5-a stop
# `setup` copies this checkout (its last commit) to every host and installs it there with JAX for TPU, for which each
# needs Python 3.11, 3.12 or 3.13 (Ubuntu 22.04 itself has 3.10); `stop` sends
# SIGTERM, on which training saves and ends with code 75; the same command resumes. The workdir must be on a file system
# that all hosts mount. --project=ID names another project than gcloud's; --dry_run prints the commands.
set -euo pipefail

name="" zone="" project="" dry_run=""
while (($#)); do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --dry_run) dry_run=1 ;;
    *) break ;;
  esac
  shift
done
if [[ -z "$name" || -z "$zone" || $# == 0 ]]; then
  echo "launch/tpu_vm.sh: error: no --name, --zone or command; expected --name=TPU --zone=ZONE COMMAND ...;" \
    "name the TPU VM and what it shall run" >&2
  exit 2
fi

where=("$name" "--zone=$zone" "--worker=all")
[[ "$project" ]] && where+=("--project=$project")

run() {
  if [[ "$dry_run" ]]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

everywhere() {
  run gcloud compute tpus tpu-vm ssh "${where[@]}" "--command=$1"
}

case "$1" in
  setup)
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    archive="$(mktemp -d)/kaleido.tar.gz"
    run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$name:kaleido.tar.gz" "${where[@]:1}"
    everywhere 'mkdir -p kaleido && tar xzf kaleido.tar.gz -C kaleido && cd kaleido && bash launch/install.sh && .venv/bin/python -m pip install -q -c requirements.txt -e ".[tpu]"'
    ;;
  stop)
    everywhere 'pid="$(cat kaleido/run.pid)" && grep -q kaleido_jax "/proc/$pid/cmdline" && kill -TERM "$pid"'
    ;;
  *)
    arguments="$(printf ' %q' "$@")"
    everywhere "cd kaleido && echo \$\$ > run.pid && exec .venv/bin/python -u -m kaleido_jax.main$arguments"
    ;;
esac
