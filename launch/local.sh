#!/usr/bin/env bash
# Several processes of one run on this machine, as on a cluster:
#   bash launch/local.sh --processes=2 [--devices=4] [VERB] --config=NAME --workdir=DIR ...
#   bash launch/local.sh --processes=2 -- python examples/mine.py ...
# --devices is how many devices each process has: virtual ones on a CPU (default 1), GPUs where there are any (default:
# an equal share). Each line of output begins with its process. When one process fails, the others are stopped; the
# exit code is that of the first that failed. SIGTERM and Ctrl-C are passed on to all, and waited for.
set -euo pipefail
set -m # each process gets a group of its own, or Ctrl-C in the terminal would reach some directly and others never

GRACE_SEC=30 # what the others have to end after one failed
STOP_SEC=120 # ... and after a signal, when one has ended

fail() {
  echo "launch/local.sh: error: $1; expected $2; $3" >&2
  exit 2
}

number() {
  [[ "$2" =~ ^[1-9][0-9]*$ ]] || fail "$1=$2" "a whole number from 1" "correct it"
}

processes=2
devices=""
while (($#)); do
  case "$1" in
    --processes=*) processes="${1#*=}" && number --processes "$processes" ;;
    --devices=*) devices="${1#*=}" && number --devices "$devices" ;;
    *) break ;;
  esac
  shift
done
for argument in "$@"; do
  [[ "$argument" == -- ]] && break
  [[ "$argument" =~ ^--(processes|devices)= ]] && fail "$argument behind other arguments" "it in front" "move it"
done

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python}"
[[ -z "${PYTHON:-}" && -x "$root/.venv/bin/python" ]] && python="$root/.venv/bin/python"
if [[ "${1:-}" == -- ]]; then
  shift
  command=("$@")
else
  command=("$python" -m kaleido_jax.main "$@")
fi
((${#command[@]})) || fail "nothing behind --" "a command" "name it"

gpus=0
if [[ "${JAX_PLATFORMS:-cuda}" == *cuda* ]] && command -v nvidia-smi >/dev/null; then
  gpus="$(nvidia-smi -L | grep -c '^GPU' || true)"
  if [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then # JAX counts those that it sees, from 0
    visible=0
    IFS=, read -ra named <<<"$CUDA_VISIBLE_DEVICES"
    for gpu in "${named[@]}"; do # CUDA ignores what follows a device that is not there; NoDevFiles is SLURM's
      [[ "$gpu" == -* || "$gpu" == NoDevFiles ]] && break
      visible=$((visible + 1))
    done
    gpus=$((visible < gpus ? visible : gpus))
  fi
fi
if ((gpus)); then
  share="${devices:-$((gpus / processes))}"
  ((share && share * processes <= gpus)) || fail "$processes processes with ${devices:-a} GPU each" "at most $gpus GPUs" \
    "lower --processes or --devices, or set JAX_PLATFORMS=cpu"
else
  export JAX_NUM_CPU_DEVICES="${devices:-1}"
fi

port="$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')"
export JAX_COORDINATOR_ADDRESS="localhost:$port" JAX_NUM_PROCESSES="$processes" PYTHONUNBUFFERED=1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

pipes="$(mktemp -d)"
trap 'rm -rf "$pipes"' EXIT
pids=() labels=() stopped=""
pass_on() {
  stopped=1
  deadline=""
  kill "-$1" "${pids[@]}" 2>/dev/null || true
}
# Until all are started a signal waits: one that came between a start and its note would miss that process.
early=""
trap 'early=TERM' TERM
trap 'early=INT' INT

for ((i = 0; i < processes; i++)); do
  mkfifo "$pipes/$i"
  sed -u "s/^/[$i] /" <"$pipes/$i" &
  labels+=($!)
  own=(JAX_PROCESS_ID="$i")
  ((gpus)) && own+=(JAX_LOCAL_DEVICE_IDS="$(seq -s, $((i * share)) $((i * share + share - 1)))")
  env "${own[@]}" "${command[@]}" >"$pipes/$i" 2>&1 &
  pids+=($!)
done
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT
[[ -z "$early" ]] || pass_on "$early"

code=0 deadline="" left=" ${pids[*]} "
while [[ "$left" =~ [0-9] ]]; do
  running=" $(jobs -rp | tr '\n' ' ') " || continue # Ctrl-C in a terminal ends this `tr`
  for pid in "${pids[@]}"; do
    [[ "$left" == *" $pid "* && "$running" != *" $pid "* ]] || continue
    left="${left/ $pid / }"
    ended=0
    wait "$pid" 2>/dev/null || ended=$?
    ((ended)) || continue
    ((code)) || code=$ended
    [[ -z "$deadline" && "$left" =~ [0-9] ]] || continue
    if [[ "$stopped" ]]; then
      deadline=$((SECONDS + STOP_SEC))
    else
      echo "launch/local.sh: a process ended with exit code $ended; the others are stopped" >&2
      deadline=$((SECONDS + GRACE_SEC))
      kill -TERM $left 2>/dev/null || true
    fi
  done
  if [[ "$deadline" ]] && ((SECONDS > deadline)); then
    kill -KILL $left 2>/dev/null || true
  fi
  sleep 0.2 & # in front it would have the terminal, whose Ctrl-C then ends this shell before its trap
  wait "$!" 2>/dev/null || true
done
wait "${labels[@]}" 2>/dev/null || true
exit "$code"
