"""What has to be computed, before anybody decides where: the operator graph."""
