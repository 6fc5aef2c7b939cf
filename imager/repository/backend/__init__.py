"""Where objects lie. Backends know names and bytes, never packs or keys."""
