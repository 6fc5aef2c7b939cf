"""What makes a restored disk start: UEFI boot entries and the fall-back path."""
