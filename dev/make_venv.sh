#!/usr/bin/env bash
# Installs this checkout, one exact Airflow and the test tools into a virtual environment of their own.
# usage: dev/make_venv.sh AIRFLOW_VERSION DIRECTORY      PYTHON=python3.12 dev/make_venv.sh …
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1
venv=$2
constraints=constraints/airflow-$version.txt
[ -f "$constraints" ] || { echo "No $constraints: supported are $(ls constraints | tr '\n' ' ')" >&2; exit 2; }

# Airflow writes its byte code once; without it every start takes three to five times as long.
unset PYTHONDONTWRITEBYTECODE

case $version in
    2.* | 3.0.*) too_new=13 ;; # these two refuse Python 3.13
    3.1.*) too_new=14 ;;
    *) too_new=15 ;;
esac
range="3.11 to 3.$((too_new - 1))"
is_usable() {
    "$1" -c "import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, $too_new))" 2> /dev/null
}
has_venv() { "$1" -c "import venv, ensurepip" 2> /dev/null; }

if [ -n "${PYTHON:-}" ]; then
    is_usable "$PYTHON" || { echo "PYTHON=$PYTHON is not a Python $range, which Airflow $version needs." >&2; exit 2; }
else
    for candidate in python3 python3.12 python3.11 python3.13 python3.14 python; do
        if is_usable "$candidate" && has_venv "$candidate"; then PYTHON=$candidate; break; fi
        if [ -z "${without_venv:-}" ] && is_usable "$candidate"; then without_venv=$candidate; fi
    done
    PYTHON=${PYTHON:-${without_venv:-}}
    if [ -z "$PYTHON" ]; then
        echo "Airflow $version needs Python $range, and there is none on the PATH." >&2
        echo "Install one, or name it: make PYTHON=/path/to/python3.12 …" >&2
        exit 2
    fi
fi
if ! has_venv "$PYTHON"; then
    echo "$PYTHON has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 2
fi

echo "Installing Airflow $version and this checkout into $venv ($("$PYTHON" --version)); this takes a minute or two."
rm -rf "$venv"
"$PYTHON" -m venv "$venv"
# For what pip builds (this checkout and, with Airflow 2, python-nvd3) it gets the build tools itself. The one variable
# keeps it to our versions there until pip 25, the other since; relative, as pip would split a path at its spaces.
export PIP_CONSTRAINT=$constraints PIP_BUILD_CONSTRAINT=$constraints
"$venv/bin/python" -m pip --disable-pip-version-check -qq install "apache-airflow==$version" --editable ".[dev]"
