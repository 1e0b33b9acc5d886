ALTER TABLE workflows DROP CONSTRAINT workflows_kind_check, ADD CONSTRAINT workflows_kind_check CHECK (kind IN
    ('create_volume', 'delete_volume', 'attach_volume', 'detach_volume', 'create_snapshot', 'delete_snapshot',
     'repair_volume', 'modify_volume'));
ALTER TABLE volumes DROP COLUMN source_volume_id;
ALTER TABLE snapshots
    DROP COLUMN set_id, DROP COLUMN cut_generation, DROP COLUMN source_id, DROP COLUMN completion_minutes,
    DROP COLUMN status_message;
DROP TABLE snapshot_permissions;
