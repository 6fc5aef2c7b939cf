"""`make bench`: remetal beside its peers and beside the limit of its parts, on the same images."""
