"""Real processes that race on one repository."""
