CREATE TABLE accounts (
    id text PRIMARY KEY CHECK (id ~ '^[0-9]{12}$'),
    name text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 128),
    enabled boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE access_keys (
    id text PRIMARY KEY CHECK (id ~ '^[A-Z0-9]{16,128}$'),
    account_id text NOT NULL REFERENCES accounts,
    -- The secret, encrypted under the master key with the id as associated data (src/seal.rs).
    sealed_secret bytea NOT NULL,
    enabled boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX access_keys_of_account ON access_keys (account_id);

-- Gateways remember keys for speed; a change makes them forget.
CREATE FUNCTION announce_access_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('vbs_access_keys', '');
    RETURN NULL;
END $$;
CREATE TRIGGER access_keys_changed AFTER UPDATE OR DELETE ON access_keys
    FOR EACH STATEMENT EXECUTE FUNCTION announce_access_keys();
CREATE TRIGGER accounts_changed AFTER UPDATE OR DELETE ON accounts
    FOR EACH STATEMENT EXECUTE FUNCTION announce_access_keys();
