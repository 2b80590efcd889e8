"""One GGUF file: its metadata (`entries.py`, and as bytes `raw.py`) and how it is written whole (`output.py`)."""
