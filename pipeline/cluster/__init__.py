"""All that says Ray: the cluster, a run's worker group, encoding's crew, packing's pool."""
