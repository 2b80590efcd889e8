"""Search over the files of a folder: extract, cut into chunks, embed, keep, find. Needs the extra ``search``.

A file takes this way: ``scan`` finds it, ``extract`` reads it in a child process, ``chunks`` cuts it by its structure,
``indexing`` embeds it and writes it into the ``database``; ``searching`` answers questions from there.
"""
