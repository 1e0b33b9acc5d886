DROP TABLE gone;
ALTER TABLE volumes DROP COLUMN missing_since;
DELETE FROM workflows WHERE kind = 'audit';
ALTER TABLE workflows DROP CONSTRAINT workflows_kind_check, ADD CONSTRAINT workflows_kind_check CHECK (kind IN
    ('create_volume', 'delete_volume', 'modify_volume', 'attach_volume', 'detach_volume', 'create_snapshot', 'create_snapshots',
     'delete_snapshot', 'copy_snapshot', 'copy_volume', 'repair_volume'));
UPDATE workflows SET outcome = CASE direction WHEN 'backward' THEN 'undone' ELSE 'succeeded' END WHERE outcome = 'given-up';
ALTER TABLE workflows
    DROP CONSTRAINT workflows_check1,
    ADD CONSTRAINT workflows_check1 CHECK (outcome IS NULL OR (outcome = 'undone') = (direction = 'backward')),
    DROP CONSTRAINT workflows_outcome_check,
    ADD CONSTRAINT workflows_outcome_check CHECK (outcome IN ('succeeded', 'undone')),
    DROP COLUMN reason;
