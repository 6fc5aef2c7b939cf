"""Which images stay and which go, and why. Pure: knows no repository, no clock and no disk."""
