"""`edge-embed serve`: one endpoint for the clients of other programs. Needs the extra ``server``."""
