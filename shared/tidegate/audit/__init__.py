"""Tamper evidence: Merkle trees over what the log held, signed roots, and the proof that a store still holds it."""
