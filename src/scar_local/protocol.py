"""AWS's wire formats, from botocore's own service models: requests parsed, answers serialised.

A service is any object with one method an operation, named as boto3 names it:
`def create_function(self, request: Request) -> dict`. `request.params` and the answer have exactly
the shapes that boto3 users see (blobs are bytes, timestamps are datetime or epoch seconds).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ACCOUNT_ID = "000000000000"
"""The one account of every local cloud."""


@dataclass(frozen=True)
class Request:
    """One parsed call of an AWS API."""

    operation: str
    region: str
    params: dict[str, Any]


class ApiError(Exception):
    """An error of an AWS API: `code` and `status` as the service's model and documentation say."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status
