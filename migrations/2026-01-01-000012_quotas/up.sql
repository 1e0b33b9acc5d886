-- What an account may have. NULL: what the gateway's configuration says.
CREATE TABLE quotas (
    account_id text PRIMARY KEY REFERENCES accounts ON DELETE CASCADE,
    volumes bigint CHECK (volumes >= 0),
    gib bigint CHECK (gib >= 0),
    iops bigint CHECK (iops >= 0),
    snapshots bigint CHECK (snapshots >= 0)
);

-- Gateways remember with an access key whether its account has quotas of its own.
CREATE TRIGGER quotas_changed AFTER INSERT OR UPDATE OR DELETE ON quotas
    FOR EACH STATEMENT EXECUTE FUNCTION announce_access_keys();

-- Until the transaction ends nobody else takes of the account's quotas. What is read afterwards counts all that others took.
CREATE FUNCTION hold_quotas(account text) RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('vbs quotas ' || account, 0))
$$;

-- When its machine was gone for good.
ALTER TABLE instances ADD COLUMN terminated_at timestamptz,
    ADD CHECK ((state = 'terminated') = (terminated_at IS NOT NULL));
