"""Deployment: a saved model behind an HTTP server.

deployer     `Deployer(path).deploy()`: a server in a process of its own
handle       what `deploy` returns: address, `predict`, `stop`
lifecycle    what becomes of the servers when the script ends
child        the parent's side of the server process: start, readiness, stop
server       the server process: `python -m llmasos_xla.deployment.server model.h5`
app          the web application: routes and errors
served       a model as the server runs it: names of tensors, warm-up, one call at a time
protocol     requests and answers of the Open Inference Protocol v2
tensors      one tensor of that protocol, as JSON or bytes
"""

from llmasos_xla.deployment.deployer import Deployer
from llmasos_xla.deployment.handle import Handle

__all__ = ["Deployer", "Handle"]
