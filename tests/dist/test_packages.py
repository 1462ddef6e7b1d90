"""What is in the source distribution and in the wheel."""

from __future__ import annotations

import email.message
import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from airflow_provider_whisul import __version__
from dev.dist import CHECKOUT, DIST, TOOLS, build

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def git_files() -> set[str]:
    """Return the files of the repository: those of git that are not ignored, committed or not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split("\0")
    return {name for name in names if name and (CHECKOUT / name).exists()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel_names: set[str]) -> None:
    package = {name for name in git_files() if name.startswith("airflow_provider_whisul/")}
    of_the_format = {name for name in wheel_names if ".dist-info/" in name}
    assert wheel_names - of_the_format == package
    assert {name.partition(".dist-info/")[2] for name in of_the_format} == {
        *("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }


def test_the_wheel_has_its_types_and_the_files_of_the_pages(wheel_names: set[str]) -> None:
    assert "airflow_provider_whisul/py.typed" in wheel_names
    page = {Path(name).name for name in wheel_names if name.startswith("airflow_provider_whisul/tracks/page/")}
    assert {"index.html", "songs.html", "tracks.js", "tracks.css", "note.svg"} <= page


def test_the_source_distribution_has_every_file_of_the_repository(unpacked: Path) -> None:
    found = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert found - git_files() == {"PKG-INFO"}
    assert git_files() - found == set()


def test_the_tests_in_the_source_distribution_run_on_the_code_beside_them(unpacked: Path) -> None:
    tests = ["tests/unit/api", "tests/unit/test_text.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp=../tests", *tests]
    run = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, timeout=250, check=False)
    assert run.returncode == 0, run.stdout
    assert re.search(r"\d+ passed", run.stdout)
    code = "import airflow_provider_whisul as package; print(package.__file__)"
    imported = subprocess.run([sys.executable, "-c", code], cwd=unpacked, capture_output=True, text=True, check=True)
    assert Path(imported.stdout.strip()).is_relative_to(unpacked)


def test_the_packages_pass_the_checks_of_a_package_index() -> None:
    files = [path for path in DIST.iterdir() if path.is_file()]
    run = subprocess.run([TOOLS, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    assert run.stdout.count("PASSED") == len(files) == 2


def test_the_metadata_is_that_of_the_project(metadata: email.message.Message) -> None:
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] == PROJECT["authors"][0]["name"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert dict(line.split(", ") for line in metadata.get_all("Project-URL", [])) == PROJECT["urls"]
    required = {str(Requirement(line)) for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert required == {str(Requirement(line)) for line in PROJECT["dependencies"]}


def test_the_readme_of_the_packages_leads_to_the_tag_of_their_version(metadata: email.message.Message) -> None:
    text = str(metadata.get_payload())
    assert text.startswith("# airflow-provider-whisul\n")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert [link for link in links if "://" not in link and not link.startswith("#")] == []
    of_the_repository = [link for link in links if PROJECT["urls"]["Source"] in link]
    assert of_the_repository
    assert all(f"/blob/v{__version__}/" in link for link in of_the_repository)
    assert "HFPR" not in text


@pytest.mark.timeout(600)
def test_another_build_from_another_folder_gives_the_same_bytes(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "elsewhere"
    for name in git_files():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        # With another date than in the checkout.
        shutil.copyfile(CHECKOUT / name, checkout / name)
        if (CHECKOUT / name).stat().st_mode & 0o100:
            (checkout / name).chmod(0o700)
    # With the build tools that are installed: a test needs no package index.
    again = build(checkout, tmp_path / "dist", "--no-isolation")
    assert [digest(path) for path in again] == [digest(sdist), digest(wheel)]
