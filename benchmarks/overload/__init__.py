"""Goodput under load: what is answered in time of what the workers could do, from half of their capacity to ten times.

world      a service on virtual time: the real coordinator, with workers that only take time
best       the most that could be had where times scatter
cases      the services and the loads that are tried in it
generator  requests at their own times, whatever the server does (an open loop), over real connections
picture    the picture of goodput against load
"""
