#!/usr/bin/env bash
# Installs this checkout, one exact Airflow and the test tools into a virtual environment of their own.
# usage: dev/make_venv.sh AIRFLOW_VERSION DIRECTORY [CONSTRAINTS]      PYTHON=/path/to/python3.12 dev/make_venv.sh …
# With BARE=1 it installs nothing but the Airflow.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1
venv=$2
constraints=${3:-constraints/airflow-$version.txt}
[ -f "$constraints" ] || { echo "No $constraints: supported are $(ls constraints | tr '\n' ' ')" >&2; exit 2; }

# Airflow writes its byte code once; without it every start takes three to five times as long.
unset PYTHONDONTWRITEBYTECODE

case $version in
    2.* | 3.0.*) newest=12 ;; # these two refuse Python 3.13
    3.1.*) newest=13 ;;
    *) newest=14 ;;
esac

if [ -z "${PYTHON:-}" ]; then
    # The oldest one first: a provider must not use what only a newer one has.
    for minor in $(seq 11 "$newest"); do
        if PYTHON=$(dev/find_python.sh "3.$minor"); then break; fi
    done
    if [ -z "$PYTHON" ]; then
        echo "Airflow $version needs Python 3.11 to 3.$newest, and there is none on the PATH or in pyenv." >&2
        echo "Install one, or name it: make PYTHON=/path/to/python3.12 …" >&2
        exit 2
    fi
elif ! "$PYTHON" -c "import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, $newest))" 2> /dev/null; then
    echo "PYTHON=$PYTHON is not a Python 3.11 to 3.$newest, which Airflow $version needs." >&2
    exit 2
fi
if ! "$PYTHON" -c "import venv, ensurepip" 2> /dev/null; then
    echo "$PYTHON has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 2
fi

checkout=(--editable ".[dev]")
[ -z "${BARE:-}" ] || checkout=()
echo "Installing Airflow $version${checkout:+ and this checkout} into $venv ($("$PYTHON" --version)); this takes a minute or two."
rm -rf "$venv"
"$PYTHON" -m venv "$venv"
# For what pip builds (this checkout and, with Airflow 2, python-nvd3) it gets the build tools itself. The one variable
# keeps it to our versions there until pip 25, the other since; relative, as pip would split a path at its spaces.
export PIP_CONSTRAINT=$constraints PIP_BUILD_CONSTRAINT=$constraints
"$venv/bin/python" -m pip --disable-pip-version-check -qq install "apache-airflow==$version" "${checkout[@]}"
