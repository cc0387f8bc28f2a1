"""``python -m mtlbench`` is ``mtlbench``."""

from mtlbench.cli import main

main()
