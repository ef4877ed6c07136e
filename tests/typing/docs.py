"""Type-checks the Python blocks of README.md and docs/ as printed. Part of `nox -s types`.

Each block must stand alone, or import files of the same page by the names in their first lines. It becomes a module in
which its lines have the numbers that they have on the page, so that an error names the line of the page. mypy and
pyright run once each, both in strict mode.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: str) -> list[str]:
    """The Python blocks of a page, each with an empty line for every line of the page above it."""
    found: list[str] = []
    inside = False
    for number, line in enumerate(page.splitlines()):
        if line == "```python":
            inside = True
            found.append("\n" * (number + 1))
        elif line.startswith("```"):
            inside = False
        elif inside:
            found[-1] += f"{line}\n"
    return found


def file_name(block: str) -> str | None:
    """The module that the reader saves a block as: its first line says so."""
    found = re.match(r"\s*# (\w+)\.py\n", block)
    return found[1] if found else None


def main() -> int:
    """0: every block passes; 1: one does not."""
    with tempfile.TemporaryDirectory() as folder:
        modules: list[str] = []
        for page in PAGES:
            found = blocks(page.read_text(encoding="utf-8"))
            prefix = "_".join(page.relative_to(ROOT).with_suffix("").parts).lower()
            # Pages have files of the same name: each gets its page's name, and so do the imports of it.
            files = {name: number for number, block in enumerate(found) if (name := file_name(block))}
            for number, block in enumerate(found):
                text = block
                for name, other in files.items():
                    text = re.sub(rf"(?m)^from {name} import", f"from {prefix}_{other} import", text)
                module = Path(folder) / f"{prefix}_{number}.py"
                module.write_text(text, encoding="utf-8")
                modules.append(str(module))
        if not modules:
            print("No page has a block of Python.")
            return 1
        config = Path(folder) / "pyrightconfig.json"
        options = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": [str(ROOT)]}
        config.write_text(json.dumps(options), encoding="utf-8")
        checkers = (
            ["mypy", "--strict", "--python-version=3.11", *modules],
            ["pyright", "--project", str(config), "--pythonpath", sys.executable],
        )
        results = [subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False) for command in checkers]
    print(f"{len(modules)} blocks of {len(PAGES)} pages.")
    return int(any(result.returncode for result in results))


if __name__ == "__main__":
    sys.exit(main())
