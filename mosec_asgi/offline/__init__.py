"""The models over a file: `mosec-asgi map`.

    readers ── Line ──► run ── Ask ──► engine().map_asks ── result ──► run ── record ──► outputs
                         ▲                                              │
                        done  ◄─────────── resume ◄────────────── output, errors

Each line of the input becomes one record: of the output, or of the file of errors. A record names its line, so that
these two files say what has been done, whatever has ended the run: `resume` reads them, and nothing else is kept.
"""
