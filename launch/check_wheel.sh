#!/usr/bin/env bash
# Before a release: builds an sdist and from it a wheel, installs the wheel into an empty environment of each Python and
# checks it there: pip check, every module, the commands. `bash launch/check_wheel.sh python3.11 python3.12 python3.13`
# takes about four minutes for each. KEEP=DIR keeps the built files there; EXTRAS="onnx wandb" then installs each of
# these extras into an empty environment of the first Python, and imports what it brings.
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

(($#)) || {
  echo "error: no Python named; expected e.g. bash launch/check_wheel.sh python3.12" >&2
  exit 2
}
"$1" -m venv "$work/build"
"$work/build/bin/python" -m pip install -q "setuptools>=77"
git -C "$repo" ls-files -z --cached --others --exclude-standard | tar -C "$repo" --null -T - -c | tar -x -C "$work" --one-top-level=source
(cd "$work/source" && "$work/build/bin/python" -c "from setuptools import build_meta; build_meta.build_sdist('$work')" >"$work/log" 2>&1) ||
  { tail -n 20 "$work/log" >&2; exit 1; }
"$work/build/bin/python" -m pip wheel -q --no-deps -w "$work" "$work"/kaleido_jax-*.tar.gz
echo "==> $(cd "$work" && ls -1 ./*.whl ./*.tar.gz | tr '\n' ' ')"
[[ -z "${KEEP:-}" ]] || { mkdir -p "$KEEP" && cp "$work"/*.whl "$work"/*.tar.gz "$KEEP"; }

for python in "$@"; do
  echo "==> an empty environment of $("$python" --version)"
  "$python" -m venv "$work/env"
  "$work/env/bin/python" -m pip install -q "$work"/*.whl
  "$work/env/bin/python" -m pip check
  (cd "$work" && env -u PYTHONPATH "$work/env/bin/python" -P "$repo/launch/check_installed.py" "$work/checked")
  rm -rf "$work/env" "$work/checked"
done
for extra in ${EXTRAS:-}; do
  echo "==> extra $extra, in an empty environment of $("$1" --version)"
  "$1" -m venv "$work/env"
  "$work/env/bin/python" -m pip install -q "$(echo "$work"/*.whl)[$extra]"
  "$work/env/bin/python" -m pip check
  (cd "$work" && env -u PYTHONPATH "$work/env/bin/python" -P "$repo/launch/check_installed.py" --extra="$extra" "$work/checked")
  rm -rf "$work/env" "$work/checked"
done
echo "==> the wheel is well"
