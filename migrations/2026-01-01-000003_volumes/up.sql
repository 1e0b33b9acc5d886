CREATE TABLE volumes (
    id text PRIMARY KEY CHECK (id ~ '^vol-([0-9a-f]{8}|[0-9a-f]{17})$'),
    account_id text NOT NULL REFERENCES accounts,
    zone text NOT NULL,
    -- The storage node that has it.
    node text NOT NULL,
    size_gib integer NOT NULL CHECK (size_gib BETWEEN 1 AND 65536),
    volume_type text NOT NULL CHECK (volume_type IN ('standard', 'gp2', 'gp3', 'io1', 'io2', 'st1', 'sc1')),
    iops integer CHECK (iops > 0),
    throughput integer CHECK (throughput > 0),
    initialization_rate integer,
    encrypted boolean NOT NULL DEFAULT false,
    multi_attach boolean NOT NULL DEFAULT false,
    -- What it was made from. No foreign key: a snapshot may be deleted while its volumes live on.
    snapshot_id text,
    state text NOT NULL CHECK (state IN ('creating', 'available', 'in-use', 'deleting', 'deleted', 'error')),
    state_reason text,
    created_at timestamptz NOT NULL DEFAULT date_trunc('milliseconds', now()),
    deleted_at timestamptz,
    -- A volume that failed gives its token back, so that the caller can use it again.
    client_token text CHECK (length(client_token) BETWEEN 1 AND 64),
    request_digest bytea,
    CHECK ((client_token IS NULL) = (request_digest IS NULL)),
    CHECK ((state = 'deleted') = (deleted_at IS NOT NULL)),
    CHECK (state <> 'error' OR client_token IS NULL)
);
CREATE UNIQUE INDEX one_volume_a_client_token ON volumes (account_id, client_token) WHERE client_token IS NOT NULL;
CREATE INDEX volumes_of_account ON volumes (account_id, id) WHERE state <> 'deleted';
CREATE INDEX volumes_by_snapshot ON volumes (snapshot_id) WHERE state = 'creating';
CREATE INDEX volumes_deleted ON volumes (deleted_at) WHERE state = 'deleted';
