"""Deployment: a model behind an HTTP server, over gRPC too if asked for, and updates while it answers.

deployer     `Deployer(path).deploy()`: a server in a process of its own
handle       what `deploy` returns: address, `predict`, `update`, `rollback`, `stop`
handing      the sending side of an update from memory
lifecycle    what becomes of the servers when the script ends
child        the parent's side of the server process: start, readiness, stop
control      how a server is told what to do: a socket of the user's own

server       the server process: `python -m llmasos_xla.deployment.server model.lmx`
app          the web application: routes and errors
asking       what the addresses of all protocols share: keys, bodies, refusals
host         the models of a server, limits and keys
slot         a model behind a name: the version that answers, those before, one on trial
batching     the queue and the thread that empties it
served       one version: face, program, weights
faces        what a model looks like from outside: names of its tensors
engine       a program compiled for a few numbers of rows, weights its arguments
versions     from a file to a version that may answer
updates      what the server does when it is told to
trial        a version that has to prove itself
shared       weights in shared memory
protocol     requests and answers of the Open Inference Protocol v2
codings      bodies that come compressed
tensors      one tensor of that protocol, as JSON or bytes
openai       requests and answers of OpenAI's completions
openai_app   their addresses: texts, whole or as they are written
choices      the texts of one request while they are written
chat         a conversation as a prompt
rendering    runs chat templates, in a process of its own
writing      the queue of prompts and the thread that writes for all of them
lanes        the rows that one version writes at once
rpc          the gRPC server: the same protocol, the same models
rpc_content  requests and answers over gRPC, as arrays by name
rpc_messages the messages of that protocol over gRPC
both         the web server with the gRPC server beside it
metrics      figures for Prometheus; `grafana.json` is the board of them
tracing      spans for OpenTelemetry: requests, and what they waited for
tls          the certificate that a server shows, and who trusts it
raw_input    what a user passes to `predict`, as tensors
exporting    `lm.export`: a model in another form, checked against our own outputs
cluster/     `engine="ray"`: several replicas, over which versions roll
targets/     those forms: ONNX, OpenVINO, IREE, SavedModel, LiteRT
"""

from llmasos_xla.deployment.deployer import Deployer
from llmasos_xla.deployment.handle import Handle

__all__ = ["Deployer", "Handle"]
