"""Several processes as one: who they are, whether they fit together, and what becomes of the others when one fails.

clusters    which of how many, from what Slurm, Ray, Kubernetes and others set
preflight   what would hang or differ, told before it does
hub, join   how the ranks meet, on rank 0; wire: the lines that they send
watch       how they learn that one has failed; judge: which one it was; relay: how the news reaches all
world       what this process is one of
gloo        the messages between CPU processes
launch      several processes on this machine; worker: what each of them runs; cores: which cores it has
"""
