"""Children of the service, without the children."""
