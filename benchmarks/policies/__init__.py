"""Batching policies side by side, on virtual time: `make policies`, or `PYTHONPATH=benchmarks python -m policies`.

patterns.py     how tasks arrive, what a batch costs, how many workers
simulation.py   virtual time: a pattern and a policy in, latencies and throughput out
ours.py         the scheduler of the package itself, behind the same interface as
rivals.py       mosec's, BentoML's, Triton's and Clipper's policies, from their documentation
verdict.py      who is on the frontier of throughput and p99 latency, and where ours is not
targets.py      a latency target under rising load, beside the policies of others that are told one
fairness.py     two routes at one stage: what a flood on one costs the other
plots.py        the pictures
__main__.py     the command
"""
