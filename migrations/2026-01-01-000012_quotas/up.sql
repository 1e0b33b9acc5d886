-- What an account may have. NULL: what the gateway's configuration says.
CREATE TABLE quotas (
    account_id text PRIMARY KEY REFERENCES accounts ON DELETE CASCADE,
    volumes bigint CHECK (volumes >= 0),
    gib bigint CHECK (gib >= 0),
    iops bigint CHECK (iops >= 0),
    snapshots bigint CHECK (snapshots >= 0)
);

-- What an account has: the sum of these rows. Each connection writes one of its own, so two that make volumes for the same
-- account at the same moment do not wait for each other. The sweeper adds them up into the row of connection 0.
CREATE TABLE usage (
    account_id text NOT NULL REFERENCES accounts ON DELETE CASCADE,
    backend integer NOT NULL,
    volumes bigint NOT NULL,
    gib bigint NOT NULL,
    -- Of io1 and io2 volumes.
    iops bigint NOT NULL,
    snapshots bigint NOT NULL,
    PRIMARY KEY (account_id, backend)
) WITH (fillfactor = 50);

CREATE FUNCTION paid_iops(volume_type text, iops integer) RETURNS bigint LANGUAGE sql IMMUTABLE
    RETURN CASE WHEN volume_type IN ('io1', 'io2') THEN coalesce(iops, 0) ELSE 0 END;

INSERT INTO usage
    SELECT account_id, 0, sum(volumes), sum(gib), sum(iops), sum(snapshots) FROM (
        SELECT account_id, 1 AS volumes, size_gib AS gib, paid_iops(volume_type, iops) AS iops, 0 AS snapshots
            FROM volumes WHERE state <> 'deleted'
        UNION ALL SELECT account_id, 0, 0, 0, 1 FROM snapshots
    ) things GROUP BY account_id;

CREATE FUNCTION use_more(account text, volumes bigint, gib bigint, iops bigint, snapshots bigint) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO usage VALUES (account, pg_backend_pid(), volumes, gib, iops, snapshots)
    ON CONFLICT (account_id, backend) DO UPDATE SET volumes = usage.volumes + excluded.volumes,
        gib = usage.gib + excluded.gib, iops = usage.iops + excluded.iops, snapshots = usage.snapshots + excluded.snapshots
$$;

CREATE FUNCTION count_made_volumes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- As use_more does, without the call: volumes are made by the hundred.
    INSERT INTO usage
        SELECT account_id, pg_backend_pid(), count(*), sum(size_gib), sum(paid_iops(volume_type, iops)), 0
        FROM made GROUP BY account_id
    ON CONFLICT (account_id, backend) DO UPDATE SET volumes = usage.volumes + excluded.volumes,
        gib = usage.gib + excluded.gib, iops = usage.iops + excluded.iops;
    RETURN NULL;
END $$;
CREATE TRIGGER volumes_made AFTER INSERT ON volumes REFERENCING NEW TABLE AS made
    FOR EACH STATEMENT EXECUTE FUNCTION count_made_volumes();

CREATE FUNCTION count_changed_volume() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM use_more(OLD.account_id, -1, -OLD.size_gib, -paid_iops(OLD.volume_type, OLD.iops), 0);
    IF TG_OP = 'UPDATE' AND NEW.state <> 'deleted' THEN
        PERFORM use_more(NEW.account_id, 1, NEW.size_gib, paid_iops(NEW.volume_type, NEW.iops), 0);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER volumes_changed AFTER UPDATE ON volumes FOR EACH ROW
    WHEN (OLD.state <> 'deleted' AND (NEW.state = 'deleted' OR (NEW.size_gib, NEW.volume_type, NEW.iops)
        IS DISTINCT FROM (OLD.size_gib, OLD.volume_type, OLD.iops)))
    EXECUTE FUNCTION count_changed_volume();
CREATE TRIGGER volumes_forgotten AFTER DELETE ON volumes FOR EACH ROW WHEN (OLD.state <> 'deleted')
    EXECUTE FUNCTION count_changed_volume();

CREATE FUNCTION count_snapshot() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM use_more(NEW.account_id, 0, 0, 0, 1);
    ELSE
        PERFORM use_more(OLD.account_id, 0, 0, 0, -1);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER snapshots_counted AFTER INSERT OR DELETE ON snapshots FOR EACH ROW EXECUTE FUNCTION count_snapshot();

-- Until the transaction ends nobody else takes of the account's quotas. What is read afterwards counts all that others took.
CREATE FUNCTION hold_quotas(account text) RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('vbs quotas ' || account, 0))
$$;

-- Which of the volumes that are asked for their accounts have room for, in the order in which they are asked. Accounts with a
-- quota are held, in one order for all; the others are not even looked at. A client token that is there already takes no
-- room.
CREATE FUNCTION admit_volumes(asked jsonb, most_volumes bigint, most_gib bigint, most_iops bigint) RETURNS SETOF text
LANGUAGE plpgsql AS $$
DECLARE
    owner text;
    most record;
    used record;
    one record;
    tokens text[];
BEGIN
    IF coalesce(most_volumes, most_gib, most_iops) IS NULL AND NOT EXISTS (SELECT FROM quotas) THEN
        RETURN QUERY SELECT each ->> 'id' FROM jsonb_array_elements(asked) each;
        RETURN;
    END IF;
    FOR owner IN SELECT DISTINCT each ->> 'account_id' FROM jsonb_array_elements(asked) each ORDER BY 1 LOOP
        SELECT coalesce(q.volumes, most_volumes) AS volumes, coalesce(q.gib, most_gib) AS gib,
            coalesce(q.iops, most_iops) AS iops
            INTO most FROM (SELECT) AS always LEFT JOIN quotas q ON q.account_id = owner;
        IF coalesce(most.volumes, most.gib, most.iops) IS NULL THEN
            RETURN QUERY SELECT each ->> 'id' FROM jsonb_array_elements(asked) each WHERE each ->> 'account_id' = owner;
            CONTINUE;
        END IF;
        PERFORM hold_quotas(owner);
        SELECT coalesce(sum(u.volumes), 0) AS volumes, coalesce(sum(u.gib), 0) AS gib, coalesce(sum(u.iops), 0) AS iops
            INTO used FROM usage u WHERE u.account_id = owner;
        tokens := '{}';
        FOR one IN SELECT * FROM jsonb_to_recordset(asked)
            AS each (id text, account_id text, size_gib integer, volume_type text, iops integer, client_token text)
            WHERE each.account_id = owner
        LOOP
            IF one.client_token = ANY (tokens) OR EXISTS (SELECT FROM volumes v
                WHERE v.account_id = owner AND v.client_token = one.client_token) THEN
                RETURN NEXT one.id;
                CONTINUE;
            END IF;
            one.iops := paid_iops(one.volume_type, one.iops);
            IF used.volumes + 1 > most.volumes OR used.gib + one.size_gib > most.gib
                OR used.iops + one.iops > most.iops THEN
                CONTINUE;
            END IF;
            SELECT used.volumes + 1 AS volumes, used.gib + one.size_gib AS gib, used.iops + one.iops AS iops INTO used;
            tokens := tokens || one.client_token;
            RETURN NEXT one.id;
        END LOOP;
    END LOOP;
END $$;

-- When its machine was gone for good.
ALTER TABLE instances ADD COLUMN terminated_at timestamptz,
    ADD CHECK ((state = 'terminated') = (terminated_at IS NOT NULL));
