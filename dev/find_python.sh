#!/usr/bin/env bash
# Prints the path of a Python of one version, from the PATH or from pyenv. Fails if there is none.
# usage: dev/find_python.sh 3.12
set -euo pipefail
version=$1

is_version() {
    [ "$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null)" = "$version" ]
}

without_venv=
# pyenv's commands on the PATH refuse every version but the chosen one, so its folder is searched too.
for python in "python$version" python3 python "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version".*/bin/python; do
    is_version "$python" || continue
    if "$python" -c "import venv, ensurepip" 2> /dev/null; then
        command -v "$python"
        exit 0
    fi
    without_venv=${without_venv:-$python}
done
[ -n "$without_venv" ] || exit 1
command -v "$without_venv"
