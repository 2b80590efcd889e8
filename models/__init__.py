"""Models known by name, one TOML file each, and the one that ships: data, read with ``importlib.resources``."""
