"""Pure model of a machine: what is there, and nothing of how it is found or made."""
