"""Layout becomes devices; same file names as `imager.layout`."""
