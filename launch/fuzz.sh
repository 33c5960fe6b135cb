#!/usr/bin/env bash
# Every fuzzer for ten minutes: bash launch/fuzz.sh [SECONDS [TARGET ...]]. What is found is in runs/fuzz/ (docs/hardening.md).
# JOBS of them run at once, at low priority. With atheris in the environment (pip install atheris) they follow coverage.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt requirements-dev.txt
seconds="${1:-600}"
targets=("${@:2}")
if [ "${#targets[@]}" = 0 ]; then
  mapfile -t targets < <(JAX_PLATFORMS=cpu python -c "from tests.fuzz.targets import TARGETS; print(*TARGETS, sep='\n')")
fi
printf '%s\n' "${targets[@]}" |
  xargs -P "${JOBS:-1}" -I{} nice -n 19 python -m tests.fuzz.long --target={} --seconds="$seconds" --out=runs/fuzz
