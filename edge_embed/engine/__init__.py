"""The engine: everything of the runtime that touches llama.cpp."""
