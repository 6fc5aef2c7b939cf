"""Builds the rescue medium: the bootable ISO that carries the restorer."""
