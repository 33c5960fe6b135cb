# Sourced by the other scripts: changes to the repository's root and puts .venv's `python` first, creating .venv and
# installing what is missing. Called with the requirement files to install.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

supported() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
    if supported "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11, 3.12 or 3.13 found; install one, or set PYTHON to its path" >&2
  return 1
}

make_venv() {
  local python
  python="$(find_python)"
  echo "==> making .venv with $("$python" --version) ($python)"
  rm -rf .venv
  # Some distributions package venv without pip; the pip beside that Python is then used.
  if ! "$python" -m venv .venv >/dev/null 2>&1; then
    "$python" -m venv --clear --without-pip .venv
    "$python" -m pip --python .venv/bin/python install -q pip
  fi
}

# The stamp holds the checksum of everything that says what to install, and of the folder, which an editable install
# depends on.
checksum() {
  { cat setup.py pyproject.toml requirements*.txt; pwd; } | cksum
}

stamp_of() {
  echo ".venv/installed-$1.stamp"
}

install() {
  local file
  for file in "$@"; do
    echo "==> installing $file (about a minute the first time)"
    .venv/bin/python -m pip install -q --disable-pip-version-check -r "$file"
  done
  .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
  for file in "$@"; do
    checksum >"$(stamp_of "$file")"
  done
}

supported .venv/bin/python || make_venv
outdated=()
for requirements in "$@"; do
  [[ "$(cat "$(stamp_of "$requirements")" 2>/dev/null)" == "$(checksum)" ]] || outdated+=("$requirements")
done
if ((${#outdated[@]})); then
  install "${outdated[@]}"
fi
export PATH="$PWD/.venv/bin:$PATH"
export VIRTUAL_ENV="$PWD/.venv"
