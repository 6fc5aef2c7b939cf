"""Primitives of the format: derivation, sealing, recipients, signatures."""
