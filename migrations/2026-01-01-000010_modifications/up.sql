-- The latest modification of each volume that was ever modified.
CREATE TABLE volume_modifications (
    volume_id text PRIMARY KEY REFERENCES volumes ON DELETE CASCADE,
    account_id text NOT NULL REFERENCES accounts,
    -- Tells it from those that the volume had before.
    id uuid NOT NULL UNIQUE,
    -- `optimizing` once the volume's own row shows the target: its storage has grown.
    state text NOT NULL CHECK (state IN ('modifying', 'optimizing', 'completed', 'failed')),
    progress integer NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 100),
    original_size_gib integer NOT NULL,
    original_type text NOT NULL,
    original_iops integer,
    original_throughput integer,
    original_multi_attach boolean NOT NULL,
    target_size_gib integer NOT NULL,
    target_type text NOT NULL,
    target_iops integer,
    target_throughput integer,
    target_multi_attach boolean NOT NULL,
    -- Whether an instance that has the volume sees the new size only when it is attached again.
    at_next_attach boolean NOT NULL DEFAULT false,
    -- Why it failed.
    reason text,
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    -- When the modifications of the last day began, oldest first: there is a limit on them. Those that failed do not count.
    recent timestamptz[] NOT NULL,
    CHECK (target_size_gib >= original_size_gib),
    CHECK ((state IN ('completed', 'failed')) = (ended_at IS NOT NULL))
);
CREATE INDEX modifications_of_account ON volume_modifications (account_id, volume_id);

ALTER TABLE volumes ADD COLUMN auto_enable_io boolean NOT NULL DEFAULT false;

ALTER TABLE workflows
    DROP CONSTRAINT workflows_kind_check,
    ADD CONSTRAINT workflows_kind_check CHECK (kind IN
        ('create_volume', 'delete_volume', 'modify_volume', 'attach_volume', 'detach_volume', 'create_snapshot',
         'delete_snapshot', 'repair_volume'));
