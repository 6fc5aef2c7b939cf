"""Templates of generated files."""
