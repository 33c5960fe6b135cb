#!/usr/bin/env bash
# Installs the package with the tested versions into .venv, and nothing else; about a minute.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
echo "==> installed; \`source .venv/bin/activate\` puts its python first"
