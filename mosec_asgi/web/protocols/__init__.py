"""How clients speak: each protocol makes calls of requests, and answers of outcomes."""
