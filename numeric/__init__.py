"""The half that measures: torch and numpy, never SymPy.

It knows nothing of the theory, and can therefore be its judge. Runs and recordings, rounding bounds, fits of convergence order, ranks, and
the data and models that real runs need, one idea to a file.
"""
