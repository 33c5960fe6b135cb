#!/usr/bin/env bash
# Lint, format and tests without those marked slow: `-m slow` runs these, `-m ""` all.
# Arguments are passed to pytest, e.g. `bash launch/test.sh tests/latents -k grammar`.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt requirements-dev.txt
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
echo "==> ruff check"
ruff check .
echo "==> ruff format --check"
ruff format --check .
echo "==> pytest"
exec python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder -m "not slow" --durations=20 --durations-min=5 "$@"
