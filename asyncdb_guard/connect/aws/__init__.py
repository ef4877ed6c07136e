"""Credentials from AWS. Needs the extra `aws`, which is imported at the first login."""
