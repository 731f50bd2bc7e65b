"""TLS on the ports: the layer between sockets and protocols, the files of the certificate, and their reload."""
