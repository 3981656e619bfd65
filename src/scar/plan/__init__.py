"""Deciding: what should exist, what differs, what to do. Pure: no AWS, no files, no clock."""
