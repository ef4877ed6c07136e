"""A stand-in for the Lambda Runtime API, with a real `awslambdaric` process behind it."""
