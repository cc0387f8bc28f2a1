"""The conformance kit: what a plugin promises, checked. For plugins of the box and for anybody's own.

Use it in a test of your own, with any test runner::

    from mtlbench.testing import check_weighting

    def test_my_weighting() -> None:
        check_weighting(MyWeighting, temperature=2.0)

Every check is a plain assertion; its message says what was expected of the plugin and what was found.
"""

from mtlbench.testing.architecture import check_architecture
from mtlbench.testing.auxiliary import check_auxiliary
from mtlbench.testing.dataset import check_dataset
from mtlbench.testing.encoder import check_encoder
from mtlbench.testing.matrices import Matrix, matrix_zoo
from mtlbench.testing.parts import TinyEncoder, tiny_tasks
from mtlbench.testing.weighting import check_weighting

__all__ = [
    "Matrix",
    "TinyEncoder",
    "check_architecture",
    "check_auxiliary",
    "check_dataset",
    "check_encoder",
    "check_weighting",
    "matrix_zoo",
    "tiny_tasks",
]
