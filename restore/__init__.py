"""Brings a machine back from an image, and proves by drills that it does."""
