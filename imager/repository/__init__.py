"""The place that holds packs, indexes, images and keys; see FORMAT.md and SECURITY.md."""
