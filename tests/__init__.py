import os

# Before NumPy is loaded: the threads of OpenBLAS wait for each other by spinning, and on a busy machine small products
# take many times as long as on one thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
