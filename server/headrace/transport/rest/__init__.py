"""The HTTP port: the Open Inference Protocol over HTTP/1.1, health, metrics."""
