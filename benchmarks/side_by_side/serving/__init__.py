"""What `serving.py` measures with: a client in a process of its own, and the servers that it asks."""
