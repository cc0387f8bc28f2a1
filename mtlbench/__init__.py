"""mtlbench: is training these tasks together better than training them apart?

Importing this package is cheap: torch is imported only by the parts that compute.
"""

__version__ = "0.1.0"
