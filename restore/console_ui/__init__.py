"""What the person at the rescued machine sees."""
