"""Ranges of activations: what is observed, and the quantizer that is made from it."""
