# Sourced by the other scripts: makes the virtual environment if there is none, installs the project
# with its development tools, and puts it first on the path. HEADSTART_VENV names another place.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${HEADSTART_VENV:-.venv}

if [ ! -x "$venv/bin/python" ]; then
  python=
  for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
  if [ -z "$python" ]; then
    echo "headstart needs Python 3.11 or newer; install it first" >&2
    exit 1
  fi
  echo "making $venv with $("$python" --version)" >&2
  "$python" -m venv "$venv"
fi

# The stamp holds what was installed last, so that a change of pyproject.toml installs anew.
stamp=$(cksum <pyproject.toml)
if [ "$(cat "$venv/headstart-stamp" 2>/dev/null)" != "$stamp" ]; then
  echo "installing headstart and its tools into $venv (about 6 GB with PyTorch, some minutes)" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
  echo "$stamp" >"$venv/headstart-stamp"
fi
PATH=$(cd "$venv/bin" && pwd):$PATH
export PATH
