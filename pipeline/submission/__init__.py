"""Jobs handed to a cluster, Ray's or Kubernetes', and followed truthfully to their end."""
