"""SCAR: containers on AWS Lambda and AWS Batch, driven by files in S3 buckets."""

__version__ = "5.0.0.dev0"
