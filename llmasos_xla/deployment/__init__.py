"""Deployment: a saved model behind an HTTP server."""
