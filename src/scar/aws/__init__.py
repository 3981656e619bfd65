"""AWS through boto3, one module a service; nothing else in `scar` speaks to it."""
