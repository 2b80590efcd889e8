"""Measurements: speed, load and memory beside peers, fidelity, retrieval quality. Results are logged in LOG.md."""
