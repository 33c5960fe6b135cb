#!/usr/bin/env bash
# Every fuzzer for ten minutes of CPU time: bash launch/fuzz.sh [SECONDS [TARGET ...]]. What is found is in runs/fuzz/
# (docs/hardening.md). JOBS of them run at once, at low priority. They follow coverage by atheris, which is installed.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt requirements-dev.txt
python -c "import atheris" 2>/dev/null || python -m pip install -q --disable-pip-version-check "atheris>=3,<4" ||
  echo "warning: no atheris for this machine; mutations of the seeds alone, which reach less" >&2
seconds="${1:-600}"
targets=("${@:2}")
if [ "${#targets[@]}" = 0 ]; then
  mapfile -t targets < <(JAX_PLATFORMS=cpu python -c "from tests.fuzz.targets import TARGETS; print(*TARGETS, sep='\n')")
fi
printf '%s\n' "${targets[@]}" |
  xargs -P "${JOBS:-1}" -I{} nice -n 19 python -m tests.fuzz.long --target={} --seconds="$seconds" --out=runs/fuzz
