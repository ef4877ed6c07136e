CREATE TABLE app_user (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cognito_sub text NOT NULL UNIQUE,
    email text,
    role text NOT NULL DEFAULT 'user'
);

CREATE TABLE note (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    author integer NOT NULL REFERENCES app_user DEFERRABLE INITIALLY DEFERRED,
    text text NOT NULL CHECK (text <> '')
);

INSERT INTO app_user (cognito_sub, email, role) VALUES ('ada', 'ada@example.com', 'admin');
