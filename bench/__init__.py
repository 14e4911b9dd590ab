"""Measuring what a governed call costs: `python -m bench.run`; README.md says how to read the table."""
