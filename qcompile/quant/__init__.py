"""Quantizers, plans and their arithmetic, in numpy."""
