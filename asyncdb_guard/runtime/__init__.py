"""`lambda_handler` turns an `async def` handler into the plain function that the AWS Lambda runtime calls."""

from asyncdb_guard.runtime.handler import lambda_handler

__all__ = ["lambda_handler"]
