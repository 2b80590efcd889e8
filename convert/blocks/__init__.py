"""A tensor as blocks of a GGML type: which type it gets (`types.py`), and its rows in it (`rows.py`, `ggml.py`)."""
