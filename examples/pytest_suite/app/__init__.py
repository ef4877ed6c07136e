"""A small application: users sign up with Cognito, and write notes through a web API."""
