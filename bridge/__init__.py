"""The bridge: the only place where SymPy and torch meet. Modules become graphs, optimizers become rules, laws become kernels."""
