"""`mosec-asgi tune`: what each stage's batches take is learned, and settings are searched for on virtual time.

    fit.py          *  time = fixed + slope * x, of measurements with outliers
    model.py        *  what is known of a stage, and the settings that are chosen for it
    simulation.py   *  the service's own scheduler with these models, and Poisson arrivals
    search.py       *  the settings that do most at a target
    room.py         *  how many workers the machine takes
    items.py           the sample, from a file
    measure.py         a worker of each stage is driven with growing batches
    run.py             all of it, from a server and a sample to a recommendation

`*` marks pure modules.
"""
