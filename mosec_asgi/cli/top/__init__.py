"""`mosec-asgi top`: a live view of a service that runs, read from its `/metrics`.

    command.py  its arguments
    source.py   asks for the metrics
    watch.py    what is known of the service, from one answer to the next
    view.py     what is shown of it: numbers as text, tables, lines
    screen.py   the live view on a terminal, by rich; keys
    lines.py    one line, or one JSON object, each time

All that is computed from two answers lies in `observing`: `scraped`, `changes`, `history`.
"""
