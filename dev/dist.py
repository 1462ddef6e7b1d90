"""
``make dist``: build the packages of a release into dist/, with what is published beside them.

The source distribution is built from the checkout, and the wheel from the source distribution. Then the wheel is
installed into environments that have nothing but a stock Airflow. In dist/beside come the exact versions that each
supported Airflow is tested with, as constraints of pip, and a list of what the wheel brings to the newest Airflow (an
SBOM, in CycloneDX's form). Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).resolve().parent.parent
DIST = CHECKOUT / "dist"
BESIDE = DIST / "beside"
SBOM = "sbom.cdx.json"
PACKAGE = "airflow-provider-whisul"

#: The environment with the build tools, and those with nothing but a stock Airflow.
TOOLS = CHECKOUT / ".venvs" / "dist" / "bin" / "python"
PINS = CHECKOUT / "constraints" / "dist.txt"


def bare_python(airflow: str) -> Path:
    """Return the Python of the environment with a stock Airflow of a version, and later the wheel."""
    return CHECKOUT / ".venvs" / f"bare-{airflow}" / "bin" / "python"


def constraints(airflow: str) -> Path:
    """Return the exact versions that an Airflow is tested with."""
    return CHECKOUT / "constraints" / f"airflow-{airflow}.txt"


def build(checkout: Path, out: Path, *options: str) -> tuple[Path, Path]:
    """
    Build the source distribution, and the wheel from it, into an empty folder.

    :param checkout: The folder of pyproject.toml.
    :param out: The folder of the packages; it is emptied.
    :param options: Options of ``python -m build``, such as ``--no-isolation``.
    :return: The source distribution and the wheel.
    """
    shutil.rmtree(out, ignore_errors=True)
    # The build gets its tools into an environment of its own, as pyproject.toml names them, in our versions.
    env = {**os.environ, "PIP_CONSTRAINT": str(PINS), "PIP_DISABLE_PIP_VERSION_CHECK": "1", **_source_date()}
    command = [TOOLS, "-m", "build", *options, "--outdir", out, checkout]
    subprocess.run(command, cwd=CHECKOUT, env=env, check=True)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def _source_date() -> dict[str, str]:
    """Return the variable that gives the files in the packages a date: that of the last commit, if there is one."""
    log = ["git", "log", "-1", "--format=%ct"]
    try:
        seconds = subprocess.run(log, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"SOURCE_DATE_EPOCH": seconds}


def install(wheel: Path, airflow: str) -> None:
    """Install the wheel, and what it needs, beside a stock Airflow, in the versions that this one is tested with."""
    pip = [bare_python(airflow), "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "uninstall", "--yes", PACKAGE], check=True, stderr=subprocess.DEVNULL)
    subprocess.run([*pip, "install", "--constraint", constraints(airflow), wheel], check=True)


def sbom(wheel: Path, airflow: str) -> dict[str, Any]:
    """
    Return the list of what the wheel brings, as CycloneDX has it: from what is installed beside it.

    :param wheel: The wheel, which is installed there.
    :param airflow: The version of Airflow.
    """
    command = [
        TOOLS,
        "-m",
        "cyclonedx_py",
        "environment",
        "--output-reproducible",
        "--short-PURLs",
        bare_python(airflow),
    ]
    listed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    dependencies = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    required = {canonicalize_name(Requirement(line).name) for line in dependencies}
    return of_package(listed, hashlib.sha256(wheel.read_bytes()).hexdigest(), required)


def of_package(listed: dict[str, Any], digest: str, required: Set[str]) -> dict[str, Any]:
    """
    Return the list of an environment with our package as its subject, and without what the package does not need.

    cyclonedx-bom follows the extras of a package too, to what is installed. The extras of ours are not followed here.

    The addresses of the components are left out: some are folders of this machine, and a component's package URL says
    what it is.

    :param listed: What cyclonedx-bom has listed.
    :param digest: The wheel's SHA-256, in hexadecimal. The same wheel has the same serial number.
    :param required: The names of what our package needs without its extras.
    """
    components = {component["bom-ref"]: component for component in listed["components"]}
    needed = {entry["ref"]: entry.get("dependsOn", []) for entry in listed["dependencies"]}
    (subject,) = [ref for ref, component in components.items() if component["name"] == PACKAGE]
    needed[subject] = [ref for ref in needed[subject] if canonicalize_name(components[ref]["name"]) in required]
    found: set[str] = set()
    pending = [subject]
    while pending:
        ref = pending.pop()
        if ref not in found:
            found.add(ref)
            pending += needed.get(ref, [])
    for component in components.values():
        component.pop("externalReferences", None)
    components[subject]["purl"] = f"pkg:pypi/{PACKAGE}@{components[subject]['version']}"
    components[subject]["hashes"] = [{"alg": "SHA-256", "content": digest}]
    return {
        **listed,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest)}",
        "metadata": {
            **{name: value for name, value in listed["metadata"].items() if name not in {"component", "tools"}},
            "component": components[subject],
        },
        "components": [components[ref] for ref in sorted(found - {subject})],
        "dependencies": [{"ref": ref, "dependsOn": sorted(needed.get(ref, []))} for ref in sorted(found)],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Make dist/ and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dev.dist", description=main.__doc__)
    parser.add_argument("airflows", nargs="+", help="the versions of the stock Airflows, oldest first")
    airflows = parser.parse_args(argv).airflows
    _, wheel = build(CHECKOUT, DIST)
    for airflow in airflows:
        install(wheel, airflow)
    BESIDE.mkdir()
    for file in sorted(PINS.parent.glob("airflow-*.txt")):
        shutil.copy(file, BESIDE / f"constraints-{file.name}")
    (BESIDE / SBOM).write_text(json.dumps(sbom(wheel, airflows[-1]), indent=1) + "\n")
    for file in sorted(path for path in DIST.rglob("*") if path.is_file()):
        print(f"{file.stat().st_size:>9}  {file.relative_to(CHECKOUT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
