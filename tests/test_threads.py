"""One Embedder, many threads, forks and closings: right vectors or typed errors, never a dead or a hanging process.

What could end the process runs in one of its own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edge_embed import Embedder
from edge_embed.errors import EngineClosedError
from tests.scripts import run_script

WORDS = "the cat sat on a mat good morning green tea world".split()


def requests(n_threads: int) -> list[list[str]]:
    """For each thread a few texts of different lengths, in an order of its own, shared ones among them."""
    random = np.random.default_rng(7)
    return [[" ".join(random.choice(WORDS, random.integers(1, 30))) for _ in range(5)] for _ in range(n_threads)]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) * b).sum(axis=-1)


@pytest.mark.parametrize("model", ["bert", "qwen3"])
def test_64_threads_get_the_vectors_of_one(model: str, request: pytest.FixtureRequest) -> None:
    embedder: Embedder = request.getfixturevalue(model)
    asked = requests(64)
    expected = [embedder.encode(texts) for texts in asked]
    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(embedder.encode, asked))
    assert cosines(np.array(expected), np.array(found)).min() > 0.9999


@pytest.mark.parametrize("model", ["bert", "qwen3"])
def test_a_text_has_the_same_vector_alone_and_among_others(model: str, request: pytest.FixtureRequest) -> None:
    embedder: Embedder = request.getfixturevalue(model)
    texts = [text for texts in requests(30) for text in texts]
    together = embedder.encode(texts)
    alone = np.array([embedder.encode(text) for text in texts])
    assert cosines(together, alone).min() > 0.9999


@pytest.mark.parametrize("model", ["bert", "qwen3"])
def test_vectors_come_back_in_the_order_of_the_texts(model: str, request: pytest.FixtureRequest) -> None:
    embedder: Embedder = request.getfixturevalue(model)
    texts = list(dict.fromkeys(text for texts in requests(30) for text in texts))
    forward, backward = embedder.encode(texts), embedder.encode(texts[::-1])
    assert cosines(forward, backward[::-1]).min() > 0.9999


def test_after_close_every_call_says_so(bert_path: Path, qwen3_path: Path) -> None:
    for path in (bert_path, qwen3_path):
        embedder = Embedder(path)
        embedder.close()
        embedder.close()
        with pytest.raises(EngineClosedError, match="closed"):
            embedder.encode("cat")


@pytest.mark.parametrize("model", ["bert_path", "qwen3_path"])
def test_closing_during_use_ends_each_call_with_a_vector_or_an_error(
    model: str, request: pytest.FixtureRequest
) -> None:
    code = """
    import sys, threading, time
    from edge_embed import Embedder
    from edge_embed.errors import EngineClosedError

    texts = ["the cat sat on the mat " * 4000, "good morning", "a" * 50000]
    outcomes = []

    def work(embedder, ready):
        ready.wait()
        try:
            for _ in range(100):
                embedder.encode(texts)
            outcomes.append("vector")
        except EngineClosedError:
            outcomes.append("closed")
        except BaseException as error:
            outcomes.append(repr(error))

    for n in range(20):
        embedder, ready = Embedder(sys.argv[1], n_threads=1), threading.Barrier(9)
        threads = [threading.Thread(target=work, args=(embedder, ready)) for _ in range(8)]
        for thread in threads:
            thread.start()
        ready.wait()
        time.sleep(0.005 * (n % 5))
        embedder.close()
        for thread in threads:
            thread.join()
    print(len(outcomes), sorted(set(outcomes) - {"vector"}))
    """
    assert "160 ['closed']\n" == run_script(code, request.getfixturevalue(model))


@pytest.mark.parametrize("model", ["bert_path", "qwen3_path"])
def test_a_forked_child_gets_an_error_and_the_parent_goes_on(model: str, request: pytest.FixtureRequest) -> None:
    code = """
    import os, sys, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forking a process with threads
    import numpy as np
    from edge_embed import Embedder
    from edge_embed.errors import EngineError

    embedder = Embedder(sys.argv[1], n_threads=1)
    before = embedder.encode("cat")
    child = os.fork()
    if child == 0:
        try:
            embedder.encode("cat")
        except EngineError as error:
            print(error.message, flush=True)
            embedder.close()
            os._exit(7)
        os._exit(8)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(np.array_equal(before, embedder.encode("cat")))
    """
    output = run_script(code, request.getfixturevalue(model))
    assert ["the engine belongs to another process", "7", "True"] == output.splitlines()


def test_a_forked_child_ends_by_itself(bert_path: Path) -> None:
    """At its end the interpreter closes what is still open; what belongs to the parent must not be waited for."""
    code = """
    import os, sys, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    from edge_embed import Embedder

    embedder = Embedder(sys.argv[1], n_threads=1)
    embedder.encode("cat")
    child = os.fork()
    if child == 0:
        sys.exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), embedder.encode("cat").shape)
    """
    assert "3 (32,)\n" == run_script(code, bert_path)


def test_a_process_may_end_without_closing(qwen3_path: Path) -> None:
    code = """
    import sys
    from edge_embed import Embedder
    embedder = Embedder(sys.argv[1], n_threads=1)
    print(embedder.encode("cat").shape)
    """
    assert "(32,)\n" == run_script(code, qwen3_path)


def test_an_embedder_that_nobody_keeps_is_freed_without_hanging(bert_path: Path) -> None:
    """Its last reference may be dropped by the engine's own thread, which cannot wait for itself."""
    code = """
    import sys, threading
    sys.setswitchinterval(1e-6)
    from edge_embed import Embedder
    for _ in range(100):
        Embedder(sys.argv[1], n_threads=1).encode("cat")
    print("done", sum(thread.name.startswith("edge-embed") for thread in threading.enumerate()))
    """
    assert "done 0\n" == run_script(code, bert_path)


# Work that holds the last reference to an engine, with the order forced: the engine's own thread has to free it.
HOLDS_THE_LAST_REFERENCE = """
import sys, time
from edge_embed.engine.llama import LlamaEngine
from edge_embed.engine.owner import Handles
from edge_embed.gguf_header import read_header
from edge_embed.model_info import read_model_info

class Work:
    def __init__(self, engine):
        self.engine = engine
    def __call__(self):
        pass

def drop(path):
    engine = LlamaEngine(read_model_info(read_header(path)), n_threads=1)
    owner = engine._owner
    with owner._lock:
        future = owner._submit(Work(engine))
        del engine
    future.result()
    print("done")
"""


def test_freeing_on_the_engines_own_thread_does_not_wait_for_itself(bert_path: Path) -> None:
    code = HOLDS_THE_LAST_REFERENCE + "drop(sys.argv[1])"
    assert "done\n" == run_script(code, bert_path, timeout=30)


def test_the_program_does_not_end_under_a_model_that_is_being_freed(bert_path: Path) -> None:
    """Nobody waits for the engine's own thread, and the libraries are torn down when the program ends."""
    slowly = """
free = Handles.free
def slow(handles):
    time.sleep(0.3)
    free(handles)
    print("freed")
Handles.free = slow
"""
    code = f"{HOLDS_THE_LAST_REFERENCE}{slowly}drop(sys.argv[1])"
    assert "done\nfreed\n" == run_script(code, bert_path, timeout=30)


def test_a_thread_may_outlive_the_main_one(bert_path: Path) -> None:
    code = """
    import sys, threading, time
    from edge_embed import Embedder
    embedder = Embedder(sys.argv[1], n_threads=1)
    def work():
        threading.main_thread().join()
        print(embedder.encode("cat").shape)
    threading.Thread(target=work).start()
    """
    assert "(32,)\n" == run_script(code, bert_path)


def test_the_garbage_collector_may_free_one_engine_in_the_midst_of_a_call_of_another(bert_path: Path) -> None:
    """It may run wherever something is allocated, so in making the future of a call, too."""
    code = """
    import gc, sys, threading
    from concurrent.futures import Future, ThreadPoolExecutor
    from edge_embed import Embedder

    gc.disable()

    def lose():
        embedder = Embedder(sys.argv[1], n_threads=1)
        embedder.itself = embedder

    kept = Embedder(sys.argv[1], n_threads=1)
    make = Future.__init__
    def collect(self):
        make(self)
        gc.collect()
    Future.__init__ = collect
    lose()
    kept.encode("cat")
    lose()
    with ThreadPoolExecutor(1) as pool:  # somebody else's
        print(pool.submit(kept.encode, "cat").result(30).shape)
    print(sum(thread.name.startswith("edge-embed") for thread in threading.enumerate()))
    """
    assert "(32,)\n1\n" == run_script(code, bert_path, timeout=30)
