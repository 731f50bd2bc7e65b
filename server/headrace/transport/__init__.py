"""Sockets, protocols and the RPCs."""
