"""Module capacity of units, and which neighbours are trained together (MRECG)."""
