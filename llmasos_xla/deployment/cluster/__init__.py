"""A server of several replicas, run by Ray Serve: each is the whole application, and versions roll over them.

conductor    which versions there are, and how replicas change to another: one after the other, or none
replica      one of them: the web application, and a thread that does what the conductor says
server       the process that starts Ray, hands over bundles and weights, and takes it all down again
"""
