DELETE FROM workflows WHERE kind = 'modify_volume';
ALTER TABLE workflows
    DROP CONSTRAINT workflows_kind_check,
    ADD CONSTRAINT workflows_kind_check CHECK (kind IN
        ('create_volume', 'delete_volume', 'attach_volume', 'detach_volume', 'create_snapshot', 'delete_snapshot', 'repair_volume'));
ALTER TABLE volumes DROP COLUMN auto_enable_io;
DROP TABLE volume_modifications;
