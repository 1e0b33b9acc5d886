-- Who else may make volumes and copies of a snapshot.
CREATE TABLE snapshot_permissions (
    snapshot_id text NOT NULL REFERENCES snapshots ON DELETE CASCADE,
    -- An account, which need not be known here, or everybody.
    grantee text NOT NULL CHECK (grantee = 'all' OR grantee ~ '^[0-9]{12}$'),
    PRIMARY KEY (snapshot_id, grantee)
);
CREATE INDEX snapshot_permissions_of_grantee ON snapshot_permissions (grantee, snapshot_id);

ALTER TABLE snapshots
    -- Those that are taken together, of all volumes of an instance at one instant.
    ADD COLUMN set_id uuid,
    -- The lease under which the whole set was cut; NULL until then.
    ADD COLUMN cut_generation bigint,
    -- What it is a copy of. No foreign key: a copy outlives its source.
    ADD COLUMN source_id text,
    -- The time in which the caller wants the copy to be done.
    ADD COLUMN completion_minutes integer CHECK (completion_minutes BETWEEN 15 AND 2880),
    -- What its owner is told of its state, where that is more than the state.
    ADD COLUMN status_message text,
    ADD CHECK (cut_generation IS NULL OR set_id IS NOT NULL);
CREATE INDEX snapshots_of_set ON snapshots (set_id) WHERE set_id IS NOT NULL;
CREATE INDEX snapshots_copied_from ON snapshots (source_id) WHERE source_id IS NOT NULL AND state = 'pending';

-- The volume it is a copy of. No foreign key: a copy outlives its source.
ALTER TABLE volumes ADD COLUMN source_volume_id text;

ALTER TABLE workflows DROP CONSTRAINT workflows_kind_check, ADD CONSTRAINT workflows_kind_check CHECK (kind IN
    ('create_volume', 'delete_volume', 'attach_volume', 'detach_volume', 'create_snapshot', 'delete_snapshot',
     'repair_volume', 'modify_volume', 'create_snapshots', 'copy_snapshot', 'copy_volume'));
