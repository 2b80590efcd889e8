"""Replicas of edge-embed's server on a Ray cluster, behind one address.

    pip install 'edge-embed[ray,server]' 'ray[serve]'
    EDGE_EMBED_MODEL=qwen3-embedding-0.6b EDGE_EMBED_REPLICAS=4 serve run --app-dir examples ray_serve:app

Each replica is the whole server, with every route, and an engine of its own: Ray gives it the cores that it computes
with, and starts another one where it is lost. Requests go to the replica with the fewest under way.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from ray import cloudpickle, serve

MODEL = os.environ.get("EDGE_EMBED_MODEL", "all-minilm-l6-v2")
REPLICAS = int(os.environ.get("EDGE_EMBED_REPLICAS", "2"))
THREADS = int(os.environ.get("EDGE_EMBED_THREADS", "1"))
# One request at a time would leave the model's batches empty: many clients' texts are computed together.
REQUESTS = 64

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # other machines do not have this file


def server(model: str = MODEL, threads: int = THREADS) -> Any:
    """The ASGI application, made in the replica."""
    from edge_embed.server.settings import ModelOptions, ServerSettings
    from edge_embed.server.start import build, served_models

    # Ray's proxy is what clients talk to: it has their names and addresses, and is where keys belong.
    return build(served_models([model]), ServerSettings(log="off"), ModelOptions(n_threads=threads))


app = serve.deployment(
    serve.ingress(lambda: server(MODEL, THREADS))(),
    name="edge-embed",
    num_replicas=REPLICAS,
    max_ongoing_requests=REQUESTS,
    ray_actor_options={"num_cpus": THREADS},
    health_check_timeout_s=60,
).bind()
