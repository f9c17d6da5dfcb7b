"""The checks of a service's contracts (the numbers are those of `contract.Contract`), one group in each module.

A check runs at the moment at which the contract can be broken: when a call is answered, a message is sent, a worker is
ended. What the service owes is checked by `settle`, when all that was ready has run and time is about to pass.

    contract      the contracts, and the exception that says which one is broken
    checker       the base of all checks; dues: what must have happened by now

    answers       1, 2, 7  one answer to each call, the right one, in time
    admission     3        which calls are admitted, and which refusals are right
    streams       2, 3     events of streams, what clients read of them, and how long a stream may stand still
    dispatch      2, 3, 5  which tasks a worker is sent, and how many
    waiting       10       no task overtakes another, or waits beside a worker that could run it
    replies       2        what workers say, and which answers follow from it
    crash         5, 7     which workers are given up, and what becomes of their tasks
    respawn       6        when workers are started, and when a stage is down
    time_limits   7        how long a worker may take to start, to stop, or for a step
    cancellation  8        calls whose clients leave
    changes       12       which workers leave when a stage is changed, and that the change comes about
    shutdown      9        what may be asked of workers before and during a stop
    protocol               which messages a worker may be sent
    memory                 payloads in memory are dropped once
    numbers                the service's own statistics
"""
