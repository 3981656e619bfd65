"""One module a service of AWS; the only importer of boto3."""
