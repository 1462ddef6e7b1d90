"""
``make scan``: what the code and its dependencies are known to do wrong.

Ruff's security rules check the code. pip-audit looks up the packages that this provider brings, in the versions that
the suite has run on. Airflow, and what Airflow brings, are not looked up: Airflow reports on its own packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).resolve().parent.parent
CODE = ["airflow_provider_whisul", "example_dags"]


def packages(requirements: list[str]) -> dict[str, str]:
    """
    Return the installed packages that some requirements bring, with their versions; Airflow's own are left out.

    :param requirements: The requirements, such as ``requests>=2.32``.
    """
    found: dict[str, str] = {}
    pending = [Requirement(text) for text in requirements]
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not wanted or name in found or name.startswith("apache-airflow"):
            continue
        found[name] = metadata.version(name)
        pending += [Requirement(text) for text in metadata.requires(name) or []]
    return dict(sorted(found.items()))


def read_report(report: str) -> tuple[list[str], list[str]]:
    """
    Return what pip-audit found, a line each, and the packages that it could not look up.

    :param report: Its output in JSON.
    :raises ValueError: It is no report: pip-audit could not reach its database.
    """
    findings, skipped = [], []
    try:
        for package in json.loads(report)["dependencies"]:
            name = package["name"]
            if "skip_reason" in package:
                skipped.append(name)
            for found in package.get("vulns", []):
                fixed = ", ".join(found["fix_versions"]) or "no version yet"
                findings.append(f"{name} {package['version']}: {found['id']}, mended in {fixed}")
    except (KeyError, TypeError) as error:
        raise ValueError("not a report of pip-audit") from error
    return findings, skipped


def audit(pip_audit: Path) -> int:
    """
    Look up the packages, print what is known of them, and return the exit status: 1 where there is a finding.

    :param pip_audit: The program.
    """
    dependencies = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    versions = packages(dependencies)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{name}=={version}\n" for name, version in versions.items())
        file.flush()
        options = [
            "--format=json",
            "--progress-spinner=off",
            "--no-deps",
            "--disable-pip",
            f"--requirement={file.name}",
        ]
        run = subprocess.run([pip_audit, *options], capture_output=True, text=True, check=False)
    return tell(run.stdout, run.stderr, versions)


def tell(report: str, errors: str, versions: dict[str, str]) -> int:
    """
    Print what pip-audit reported, and return the exit status: 1 where there is a finding.

    :param report: What it wrote to its standard output.
    :param errors: What it wrote to its standard error.
    :param versions: The packages that it was asked about.
    """
    try:
        findings, skipped = read_report(report)
    except ValueError:
        reason = (errors.strip().splitlines() or ["it wrote nothing"])[-1]
        print(f"NOT LOOKED UP: pip-audit could not reach its database of vulnerabilities. {reason[:300]}")
        return 0
    for finding in findings:
        print(f"VULNERABLE: {finding}")
    if skipped:
        print(f"NOT LOOKED UP: pip-audit's database does not know, or cannot be reached for: {', '.join(skipped)}.")
    print(f"pip-audit: {len(versions) - len(skipped)} of {len(versions)} packages looked up, {len(findings)} findings.")
    return 1 if findings else 0


def main(pip_audit: Path) -> int:
    """Run both and return the exit status: 1 where either has a finding."""
    ruff = [sys.executable, "-m", "ruff", "check", "--select=S", *CODE]
    code = subprocess.run(ruff, cwd=CHECKOUT, check=False).returncode
    dependencies = audit(pip_audit)
    return 1 if code or dependencies else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
