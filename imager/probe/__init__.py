"""A live machine or a disk file becomes a layout; same file names as `imager.layout`."""
