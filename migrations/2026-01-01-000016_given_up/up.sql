-- Workflows that an operator has given up, and why a workflow turned back: `error` is what went wrong last.
ALTER TABLE workflows
    ADD COLUMN reason text,
    DROP CONSTRAINT workflows_outcome_check,
    ADD CONSTRAINT workflows_outcome_check CHECK (outcome IN ('succeeded', 'undone', 'given-up')),
    DROP CONSTRAINT workflows_check1,
    ADD CONSTRAINT workflows_check1 CHECK (outcome IS NULL OR outcome = 'given-up' OR (outcome = 'undone') = (direction = 'backward'));
UPDATE workflows SET reason = error WHERE direction = 'backward';

ALTER TABLE workflows DROP CONSTRAINT workflows_kind_check, ADD CONSTRAINT workflows_kind_check CHECK (kind IN
    ('create_volume', 'delete_volume', 'modify_volume', 'attach_volume', 'detach_volume', 'create_snapshot', 'create_snapshots',
     'delete_snapshot', 'copy_snapshot', 'copy_volume', 'repair_volume', 'audit'));

-- Since when a volume's node, which answers, does not have it. It may be that a disk is mounted late: nothing is done, but told.
ALTER TABLE volumes ADD COLUMN missing_since timestamptz;
CREATE INDEX volumes_missing ON volumes (node) WHERE missing_since IS NOT NULL;

-- What was ours on a node and is over, so that what is left of it there is known for ours: volumes and snapshots that were
-- deleted, targets whose attachment was given up. No foreign keys: it outlives all that it names.
CREATE TABLE gone (
    name text PRIMARY KEY,
    volume_id text NOT NULL,
    node text NOT NULL,
    gone_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX gone_by_time ON gone (gone_at);
INSERT INTO gone (name, volume_id, node, gone_at) SELECT id, id, node, deleted_at FROM volumes WHERE state = 'deleted';
