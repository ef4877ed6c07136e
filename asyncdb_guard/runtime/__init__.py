"""What the AWS Lambda runtime calls: `lambda_handler` makes a plain function of an `async def` handler."""

from asyncdb_guard.runtime.handler import lambda_handler

__all__ = ["lambda_handler"]
