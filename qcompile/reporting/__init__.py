"""The report of one compilation, and its views."""
