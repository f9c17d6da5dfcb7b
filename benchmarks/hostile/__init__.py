"""What clients must not be able to do to a service: the attacks, and what an honest client feels meanwhile.

`__main__` is the command. An attack (`attacks`, `http2`) runs in a process of its own (`attacker`); beside it `honest`
asks a quick model, and `watch` looks at what the service's processes hold. `judge` says what was broken, from numbers
alone.
"""
