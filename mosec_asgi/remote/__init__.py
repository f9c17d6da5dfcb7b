"""The engine and its callers in different processes: the messages of `batching.engine`, over a Unix socket.

    web process                                              process of the engine
    engine.py  ── calls, cancels, credits ──► socket ──► callers.py ──► coordinator
    RemoteEngine ◄─ outcomes, chunks ─────── socket ◄──  WebProcess, the caller of its calls

All that one side says in a turn of its event loop goes as one write (`outbox.py`, `frames.py`). Payloads of 64 KiB and
more lie in the memory that the engine shares with its workers (`memory.py`): a web process writes there where a worker
reads it, and reads where a worker has written. `handshake.py` is how a connection begins, `counts.py` how the answers
of all web processes get into one set of metrics.

A connection that ends takes its calls with it: the engine cancels them, and the web side answers 503.
"""
