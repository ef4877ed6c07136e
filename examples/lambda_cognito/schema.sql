CREATE TABLE app_user (
    cognito_sub uuid PRIMARY KEY,
    email text,
    role text NOT NULL DEFAULT 'user',
    tenant_id uuid
);

CREATE TABLE app_client (
    client_id text PRIMARY KEY,
    tenant_id uuid NOT NULL
);

-- The functions' login. Its limit is the only one that the server itself enforces for the whole fleet: at least the
-- reserved concurrency of all functions together (ReservedConcurrency in template.yaml, twice).
CREATE ROLE app_login LOGIN CONNECTION LIMIT 50;
-- On RDS, to log in with IAM tokens, as template.yaml does: GRANT rds_iam TO app_login;
GRANT SELECT, INSERT ON app_user TO app_login;
GRANT SELECT ON app_client TO app_login;
