"""HTTP/1.1 and HTTP/2 as `run()` speaks them: uvicorn's protocols, with shorter ways."""
