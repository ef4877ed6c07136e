"""Logins from AWS. Needs the extra `aws`, which is imported when the first login is needed."""
