"""Install LibMTL beside the benchmarks, where nothing but they see it.

Run: python benchmarks/peers/get.py

It comes from PyPI and without its dependencies: torch is here already, and torchvision is not needed for what
is timed. TorchJD is a development dependency and needs nothing of this.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "_installed"
WHAT = "LibMTL==1.1.5"


def main() -> None:
    """Install it once; say so where it cannot be had, which is no error."""
    if (FOLDER / "LibMTL").is_dir():
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(FOLDER), WHAT]
    if subprocess.run(pip, check=False).returncode != 0:
        print(f"{WHAT} could not be installed: what it is timed in is skipped", file=sys.stderr)


if __name__ == "__main__":
    main()
