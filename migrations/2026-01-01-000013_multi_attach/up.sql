-- Volumes that several instances may have at once.
ALTER TABLE volumes
    ADD CONSTRAINT multi_attach_is_for_some_types CHECK (NOT multi_attach OR volume_type IN ('io1', 'io2')),
    -- For the attachments' foreign key.
    ADD UNIQUE (id, multi_attach);

-- An attachment says what its volume says, so that an index can tell of which volumes there may be several. A volume that shall
-- have one only and has two live ones fails on that index.
ALTER TABLE attachments ADD COLUMN multi_attach boolean NOT NULL DEFAULT false;
UPDATE attachments SET multi_attach = true FROM volumes WHERE volumes.id = volume_id AND volumes.multi_attach;
ALTER TABLE attachments
    DROP CONSTRAINT attachments_volume_id_fkey,
    ADD FOREIGN KEY (volume_id, multi_attach) REFERENCES volumes (id, multi_attach) ON UPDATE CASCADE ON DELETE CASCADE;
DROP INDEX one_live_attachment_a_volume;
CREATE UNIQUE INDEX one_live_attachment_a_volume ON attachments (volume_id) WHERE state <> 'detached' AND NOT multi_attach;
CREATE UNIQUE INDEX one_live_attachment_a_volume_and_instance ON attachments (volume_id, instance_id)
    WHERE state <> 'detached';

-- An attachment's workflow has its own lock, as two of one volume may be made and ended at once.
UPDATE workflows SET lock_key = params ->> 'attachment'
    WHERE kind IN ('attach_volume', 'detach_volume') AND finished_at IS NULL;
