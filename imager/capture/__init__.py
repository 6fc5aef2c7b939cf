"""From disks to an image: plan, read, cut, seal, store."""
