"""Which byte ranges of a volume matter, cross-checked, with reading whole as the fall-back."""
