"""Tables of texts in, the same rows with their vectors out: by this process, or by the workers of a Ray cluster.

The input is cut into blocks of rows, numbered by their place (``blocks``). A worker (``worker``) reads a block
(``reading``), embeds it and writes it (``writing``) under a name that is made of its number and of everything that
decides what is in it (``manifest``). So a block that is done twice is there once, one that is there is not done again,
and who does it (``local``, ``cluster``) makes no difference. ``running`` puts them together. Needs the extra ``bulk``.
"""
