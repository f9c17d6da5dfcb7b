"""The service of echo.py, which also calls itself: see calling.py."""

from calling import calling
from echo import Echo

ITEM = {"id": 1, "text": "the quick brown fox", "scores": [0.25, 0.5, 0.75]}

if __name__ == "__main__":
    server = calling(ITEM, ITEM.__eq__)
    server.append_worker(Echo)
    server.run()
