CREATE TABLE snapshots (
    id text PRIMARY KEY CHECK (id ~ '^snap-([0-9a-f]{8}|[0-9a-f]{17})$'),
    account_id text NOT NULL REFERENCES accounts,
    -- No foreign key: a snapshot outlives its volume.
    volume_id text NOT NULL,
    volume_size_gib integer NOT NULL CHECK (volume_size_gib BETWEEN 1 AND 65536),
    -- The storage node that has it.
    node text NOT NULL,
    description text NOT NULL DEFAULT '' CHECK (length(description) <= 255),
    encrypted boolean NOT NULL DEFAULT false,
    state text NOT NULL CHECK (state IN ('pending', 'completed', 'error', 'deleting')),
    state_reason text,
    progress integer NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 100),
    started_at timestamptz NOT NULL DEFAULT date_trunc('milliseconds', now()),
    completed_at timestamptz,
    -- The bytes of it that hold data, known once it is completed.
    data_bytes bigint CHECK (data_bytes >= 0),
    CHECK (state <> 'completed' OR (completed_at IS NOT NULL AND progress = 100))
);
CREATE INDEX snapshots_of_account ON snapshots (account_id, id) WHERE state <> 'deleting';
CREATE INDEX snapshots_of_volume ON snapshots (volume_id);
