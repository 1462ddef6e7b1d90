#!/usr/bin/env bash
# Remakes constraints/airflow-*.txt, the exact versions that each supported Airflow is tested with, and
# constraints/lowest-*.txt, those of the oldest one with the lowest versions that pyproject.toml allows.
# usage: dev/update_constraints.sh [AIRFLOW_VERSION ...]     (default: those in constraints/)
# Only a maintainer needs this, and the network; it resolves with uv, which it installs into a temporary environment.
set -euo pipefail
cd "$(dirname "$0")/.."

# Airflow's own ranges let in releases that break the older ones; these pins keep them working.
extra_pins() {
    case $1 in
        3.2.2) echo "cadwyn==7.0.0 fastapi==0.136.3 pydantic==2.12.5" ;;
        3.1.8) echo "pydantic==2.12.5" ;;
        3.0.6) echo "pyjwt==2.10.1 cadwyn==5.4.6 fastapi==0.117.1 starlette==0.48.0 pydantic==2.12.5" ;;
    esac
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet uv

compile() { # PYTHON_VERSION OUTPUT [OPTION ...]
    "$work/venv/bin/uv" pip compile --quiet --python-version "$1" --extra dev --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links --no-strip-extras "${@:3}" "$work/requirements.in" pyproject.toml |
        sed -E 's/\[[^]]*\]//' | grep -E '^[A-Za-z0-9._-]+==[^ ;]+$' > "$2"
}

# The files there say which Airflows are supported; a new one is added by naming it.
[ $# -gt 0 ] || set -- $(ls constraints | sed -n 's/^airflow-\(.*\)\.txt$/\1/p')
for version in "$@"; do
    # What pip builds with: the first three the checkout, the other two python-nvd3, which Airflow 2 needs.
    printf '%s\n' "apache-airflow==$version" hatchling hatch-fancy-pypi-readme editables setuptools wheel $(extra_pins "$version") > "$work/requirements.in"
    compile 3.11 "$work/3.11.txt"
    # The same versions on the newer Pythons, where some packages need others beside them.
    newer="3.12 3.13"
    case $version in 2.* | 3.0.*) newer=3.12 ;; esac
    for python in $newer; do compile "$python" "$work/$python.txt" --constraint "$work/3.11.txt"; done
    LC_ALL=C sort -u "$work"/3.1?.txt > "constraints/airflow-$version.txt"
    rm "$work"/3.1?.txt
    echo "constraints/airflow-$version.txt: $(wc -l < "constraints/airflow-$version.txt") packages"
done

# Lowest are our own dependencies, and those of the extras redis and openlineage, which the suite runs with. What they need
# beside them is free, all else is as in constraints/airflow-*.txt.
# packaging is as low as Airflow itself allows it.
oldest=$(ls constraints | sed -n 's/^airflow-\(.*\)\.txt$/\1/p' | sort -V | head -n 1)
sed -n -e '/^dependencies = \[/,/^\]/s/^    "\([A-Za-z0-9._-]*\)>=\([0-9.]*\).*/\1==\2/p' \
    -e 's/^\(redis\|openlineage\) = \["\([a-z-]*\)>=\([0-9.]*\)"\]$/\2==\3/p' pyproject.toml |
    grep -vE '^(apache-airflow|packaging)==' > "$work/lowest.txt"
free=$(sed 's/==.*//' "$work/lowest.txt" | paste -sd '|')
grep -vE "^($free|packaging|apache-airflow-providers-.*|openlineage-.*|aiosignal|frozenlist|multidict|propcache)==" \
    "constraints/airflow-$oldest.txt" > "$work/others.txt"
{ printf '%s\n' "apache-airflow==$oldest" hatchling editables setuptools wheel && cat "$work/lowest.txt"; } > "$work/requirements.in"
compile 3.11 "$work/all.txt" --resolution lowest-direct --constraint "$work/others.txt"
LC_ALL=C sort -u "$work/all.txt" > "constraints/lowest-$oldest.txt"
echo "constraints/lowest-$oldest.txt: $(wc -l < "constraints/lowest-$oldest.txt") packages"
