"""One router a resource; a route checks, calls the service and shapes the answer, and does nothing else."""
