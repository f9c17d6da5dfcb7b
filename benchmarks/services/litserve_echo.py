"""`echo.py` for LitServe."""

from typing import Any

import litserve
from litserve_api import serve


class Echo(litserve.LitAPI):
    """Answers what it is asked."""

    def setup(self, device: str) -> None:
        """Load nothing."""

    def predict(self, data: Any) -> Any:
        """Return `data`."""
        return data


if __name__ == "__main__":
    serve(Echo(api_path="/inference"))
