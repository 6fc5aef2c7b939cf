"""Stops real operations at every file-system operation in turn and looks at what is left."""
