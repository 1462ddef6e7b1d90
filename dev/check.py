"""``make check FILE=path``: lint, types and the tests of one source or test file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGE = "airflow_provider_whisul"
TEST_FOLDERS = ("unit", "integration")


def find_tests(file: Path, checkout: Path) -> list[Path]:
    """
    Return the test files of a file, relative to the checkout, by their place: tests/ mirrors the package.

    Those of ``airflow_provider_whisul/api/models.py`` are ``test_models.py`` and every ``test_models_*.py`` in
    ``tests/unit/api`` and ``tests/integration/api``; where there is none, all in these two folders. The test of a test
    file is the file itself.

    :param file: The file, relative to the checkout.
    :param checkout: The checkout.
    """
    if file.parts[0] == "tests":
        return [file] if file.name.startswith("test_") else []
    # The commands of the repository have their tests in folders of their own name.
    place = Path(*file.parent.parts[1:]) if file.parts[0] == PACKAGE else file.parent
    stems = [sibling.stem for sibling in (checkout / file.parent).glob("*.py")]
    folders = [Path("tests", name, place) for name in TEST_FOLDERS]
    found = sorted(path.relative_to(checkout) for folder in folders for path in (checkout / folder).glob("test_*.py"))
    own = [path for path in found if _stem_of(path, stems) == file.stem]
    # The tests beside the folders belong to other modules.
    return own or ([] if place == Path() else found)


def main(argv: list[str]) -> int:
    """Run the checks and return the exit status: 1 where one fails, 2 where the file is none of the checkout."""
    file = Path(argv[0]).resolve() if len(argv) == 1 else None
    if file is None or not file.is_file() or not file.is_relative_to(CHECKOUT):
        print("Name a file of this checkout: make check FILE=airflow_provider_whisul/api/models.py", file=sys.stderr)
        return 2
    path = file.relative_to(CHECKOUT)
    tests = find_tests(path, CHECKOUT)
    commands = [["ruff", "check", str(path)], ["ruff", "format", "--check", str(path)], ["mypy"]]
    if tests:
        commands.append(["pytest", "-q", *map(str, tests)])
    failed = [
        command
        for command in commands
        if subprocess.run([sys.executable, "-m", *command], cwd=CHECKOUT, check=False).returncode
    ]
    for command in failed:
        print(f"Failed: {' '.join(command)}")
    if not tests:
        print(f"No test ran: tests/unit and tests/integration have no test_{path.stem}.py in the folder of {path}.")
    return 1 if failed else 0


def _stem_of(test: Path, stems: list[str]) -> str:
    """Return the source file that a test file belongs to: ``test_whisul_batch.py`` is not of ``whisul``."""
    name = test.stem.removeprefix("test_")
    return max((stem for stem in stems if name == stem or name.startswith(f"{stem}_")), key=len, default="")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
