"""Problems that every solver is tested on."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

jacobians = st.integers(1, 8).flatmap(
    lambda count: arrays(
        np.float64,
        st.tuples(st.just(count), st.integers(1, 6)),
        elements=st.one_of(st.integers(-2, 2).map(float), st.floats(-1e6, 1e6).map(lambda x: round(x, 6))),
    )
)
"""Jacobians of one to eight tasks: small integers, which give exact ties and zeros, or any reals."""
