"""The deriving half: architecture graphs, symmetries, learning rules, charges and balance laws, in SymPy; never torch."""
