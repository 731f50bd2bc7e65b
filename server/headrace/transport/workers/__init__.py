"""Connections in processes of their own: workers speak HTTP/2, the engine's process runs models."""
