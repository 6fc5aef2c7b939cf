"""A small guest with Debian's own kernel, for filesystems that the kernel of the host may lack."""
