"""The blocks of a job by the workers of a Ray cluster.

Ray Data deals them out, and deals them out again where a worker is lost. What Ray moves are numbers of blocks. Workers
read and write the rows themselves, so the cluster needs no room for them, and every machine must reach the input and
the output by the same names. Needs the extra ``ray``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from edge_embed import catalogue
from edge_embed.bulk.blocks import Block, room_for_workers, threads_of_workers
from edge_embed.bulk.job import Done, Job
from edge_embed.bulk.worker import Worker
from edge_embed.errors import ClusterError, EdgeEmbedError, EngineMemoryError, InvalidOptionError

# Beside the model: Python with pyarrow and Ray's own, and a block with its vectors: an estimate.
BESIDE_MODEL: Final = 400 << 20
RETRIES: Final = 5  # of a block whose worker was lost: more, and it is the block that ends workers
_REACH: Final = 20.0  # seconds that a cluster may take to be connected to
_STORE: Final = 128 << 20  # Ray's object store, which holds numbers of blocks; Ray wants 75 MiB at least


@dataclass(frozen=True, slots=True)
class Pool:
    """The workers of a job.

    Attributes:
        workers: how many.
        threads: of each.
        memory: of each, in bytes, as it is asked of Ray.
    """

    workers: int
    threads: int
    memory: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """Who does a job: ``Cluster(...)(job, blocks)`` yields blocks as they are done, in no certain order.

    Attributes:
        address: of a running cluster, as ``ray.init`` takes it; by default ``RAY_ADDRESS``, or else one of this
            machine's cores that lives as long as the job.
        workers: how many engines; by default one for each machine, with all of its cores.
        threads: of each engine; by default as many as leave no core unused or shared.
        gpus: GPUs of each engine, as Ray counts them.
    """

    address: str | None = None
    workers: int | None = None
    threads: int | None = None
    gpus: float = 0

    def __call__(self, job: Job, blocks: Sequence[Block]) -> Iterator[Done]:
        """The blocks that are done.

        Raises:
            InvalidOptionError: Ray is not installed, or there are fewer cores than workers.
            EngineMemoryError: the cluster has no room for the workers.
            ClusterError: it cannot be reached, or its workers are lost again and again.
            EdgeEmbedError: what a worker met.
        """
        ray = _ray()
        with _connected(ray, self.address):
            machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
            memory = [int(machine.get("memory", 0)) for machine in machines]
            pool = pool_of(
                [int(machine["CPU"]) for machine in machines],
                memory,
                need=memory_need(job, max(memory, default=0)),
                workers=self.workers,
                threads=self.threads,
            )
            yield from _deal(ray, job, blocks, pool, self.gpus)


def memory_need(job: Job, memory: int) -> int:
    """What a worker takes, in bytes: the model as the planner counts it, and what is beside it.

    Args:
        job: the job.
        memory: of the largest machine, in bytes: what is planned for where this one is too small for the model.

    Raises:
        EngineMemoryError: the model fits nowhere.
    """
    from edge_embed import planning
    from edge_embed.gguf_header import read_header
    from edge_embed.model_info import read_model_info

    options = job.request.options
    path = catalogue.resolve(job.request.model)
    info = read_model_info(read_header(path), pooling=options.get("pooling"), max_tokens=options.get("max_tokens"))
    try:
        need = planning.memory_of(info)
    except EngineMemoryError:
        need = planning.plan(str(path), ram=memory, vram=0, max_tokens=options.get("max_tokens")).plan.total
    return need + BESIDE_MODEL


def pool_of(
    cores: Sequence[int], memory: Sequence[int], *, need: int, workers: int | None = None, threads: int | None = None
) -> Pool:
    """How many workers of how many threads.

    Args:
        cores: of each machine.
        memory: of each machine, in bytes.
        need: of each worker, in bytes.
        workers: how many; one for each machine by default.
        threads: of each; as many as fit by default.

    Raises:
        InvalidOptionError: fewer cores than that.
        EngineMemoryError: less memory than that.
    """
    wanted = workers or len(cores)
    found = threads or threads_of_workers(cores, wanted)
    if not found or sum(c // found for c in cores) < wanted:
        raise InvalidOptionError(
            f"{wanted} workers{f' of {threads} threads' if threads else ''} need more cores than the cluster has: "
            f"{' + '.join(map(str, cores)) or 'none'}",
            hint="ask for fewer with --workers",
        )
    room = room_for_workers(cores, memory, found, need)
    if room < wanted:
        raise EngineMemoryError(
            f"a worker needs {need / 1e9:.1f} GB, and of {wanted} the cluster has room for {room}",
            hint=f"--workers {room}" if room else "a machine with more memory, or a smaller type of the model",
        )
    return Pool(wanted, found, need)


class RayWorker:
    """A Worker as Ray Data calls it: with the number of a block, in a process of its own.

    What goes wrong is handed back as a value. Raised, it would come wrapped in Ray's own errors, and Ray would log it.
    """

    def __init__(self, job: Job, threads: int) -> None:
        self._job, self._threads = job, threads
        self._worker: Worker | None = None

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        """What became of a block."""
        import pickle

        block = Block(**{name: int(values[0]) for name, values in rows.items()})
        try:
            if self._worker is None:
                self._worker = Worker(self._job, threads=self._threads, elsewhere=True)
            done, failure = self._worker.do(block), b""
        except EdgeEmbedError as error:
            done, failure = Done(block.number, 0, 0, 0, 0.0, 0.0, os.getpid()), pickle.dumps(error)
        return {**{name: [value] for name, value in asdict(done).items()}, "failure": [failure]}


def _deal(ray: Any, job: Job, blocks: Sequence[Block], pool: Pool, gpus: float) -> Iterator[Done]:
    import pickle

    if not blocks:
        return
    with _quiet():
        data = ray.data.from_items([asdict(block) for block in blocks], override_num_blocks=len(blocks))
        data = data.map_batches(
            RayWorker,
            batch_size=None,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(pool.workers, len(blocks)), max_tasks_in_flight_per_actor=2),
            fn_constructor_args=(job, pool.threads),
            num_cpus=pool.threads,
            num_gpus=gpus or None,
            memory=pool.memory,
            ray_remote_args_fn=lambda: {"max_task_retries": RETRIES},
        )
    try:
        for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                failure = row.pop("failure")
                if failure:
                    raise pickle.loads(failure)
                yield Done(**row)
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"Ray gave up: {str(error).splitlines()[0]}",
            hint="what is done is kept, the same command goes on; Ray's logs say what ended the workers",
        ) from error


def _ray() -> Any:
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise InvalidOptionError(
            f"--engine ray needs a package that is not installed: {error.name}", hint="pip install 'edge-embed[ray]'"
        ) from None
    return ray


@contextlib.contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """In a cluster: the one that this process is in already, the one at the address, or a new one of this machine."""
    from edge_embed.engine.devices import default_threads

    with _quiet():
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        if hasattr(context, "max_consecutive_actor_init_deaths"):  # 0 by default: one death ends a run
            context.max_consecutive_actor_init_deaths = RETRIES
        logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    found = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent home unasked
    _reachable(found)
    own = {"num_cpus": default_threads(), "object_store_memory": _STORE, "include_dashboard": False}
    try:
        with _quiet():
            ray.init(**({"address": found} if found else own), log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"{f'the cluster at {found}' if found else 'a cluster'} cannot be used: {str(error).splitlines()[0]}",
            hint="`ray status --address ...` says more" if found else "",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _reachable(address: str | None) -> None:
    """Refuse an address where nothing listens, for which Ray would wait for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (colon and port.isdecimal()):  # auto, local, or none
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ClusterError(
            f"the cluster at {address} cannot be used: {error}", hint="`ray status --address ...` says more"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Ray warns of its own interfaces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
