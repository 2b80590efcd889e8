"""One module a family of clients: its shapes, translated to one internal request and back. None touches a model."""
