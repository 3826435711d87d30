"""Everything that only a GPU can show; see :mod:`benchmarks.gpu.__main__`."""
