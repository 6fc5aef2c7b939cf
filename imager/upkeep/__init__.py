"""Check and, later, prune, repair and sync: off the path of the data, not on the medium."""
